"""The README's commands and code do what it says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn
from zoo import ZOO, samples

from edgebuild.bundles.manifest import load_bundle

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = {
    language: re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    for language in ("sh", "python")
}
BIN = Path(sys.executable).parent
# Those whose options the README names.
COMMANDS = ("build", "bench", "verify", "native", "plan", "convert", "distill-data", "shrink")


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEBUILD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def commands(block: str) -> list[str]:
    return [line.partition("#")[0].strip() for line in block.splitlines() if line.strip()]


def test_the_make_targets_of_the_readme_exist() -> None:
    named = set(re.findall(r"make (\w+)", README)) - {"and"}
    for target in sorted(named):
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_the_ci_calls_only_what_the_readme_names() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    called = [line for line in lines if line.startswith("make")]
    assert called == ["make test"]
    assert "make test" in BLOCKS["sh"][0]


def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    for line in commands(BLOCKS["sh"][1]):
        done = subprocess.run(
            shlex.split(line),
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_the_code_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specimen = ZOO["two-inputs"]()
    network: nn.Module = specimen.network
    splits = [samples(specimen, 8, seed) for seed in range(3)]
    names = {
        "network": network,
        "example": specimen.example,
        **dict(zip(("train", "validation", "test"), splits, strict=True)),
        "accuracy": lambda outputs, labels: 1.0,
    }
    monkeypatch.chdir(tmp_path)
    (block,) = BLOCKS["python"]
    exec(compile(block, "README.md", "exec"), names)
    assert load_bundle(tmp_path / "dist" / "keywords").manifest.workload.name == "keywords"


def test_every_option_that_the_readme_names_exists() -> None:
    told = "".join(
        subprocess.run(
            [BIN / "edgebuild", command, "--help"],
            env={**os.environ, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for command in COMMANDS
    )
    for option in set(re.findall(r"--[a-z][a-z-]+", README)):
        assert option in told, option
