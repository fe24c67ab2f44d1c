"""The style that the project keeps is part of its tests: ruff, mypy --strict, the floors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECKS = {
    "ruff finds nothing": ["-m", "ruff", "check"],
    "the code is formatted": ["-m", "ruff", "format", "--check"],
    "mypy --strict finds nothing": ["-m", "mypy"],
}


@pytest.mark.parametrize("command", CHECKS.values(), ids=CHECKS.keys())
def test_style(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_floor_imports_only_from_below() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_is_too_long_to_guess_from_its_name() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines())
        for path in (ROOT / "edgebuild").rglob("*.py")
    }
    assert {path: length for path, length in lengths.items() if length > 480} == {}


@pytest.mark.parametrize("command", [["--help"], ["targets"]], ids=" ".join)
def test_what_needs_no_network_loads_no_heavy_library(command: list[str]) -> None:
    """A clock would fail on a busy machine; what is imported decides the start-up time."""
    code = (
        "import sys, contextlib, io\n"
        "from edgebuild.cli import main\n"
        f"sys.argv = ['edgebuild', *{command!r}]\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    main()\n"
        "heavy = {'torch', 'numpy', 'scipy', 'onnx', 'onnxruntime', 'litert_torch', 'jax'}\n"
        "heavy.add('numba')\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
