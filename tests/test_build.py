"""The straight line from a workload to a bundle, on small real networks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_build
import torch
from background import heeding_interrupts
from torch import nn
from zoo import ZOO, samples

import edgebuild
from edgebuild import Budget, Workload
from edgebuild.bundles.manifest import Bundle, load_bundle
from edgebuild.exporters.onnx import Onnx
from edgebuild.exporters.tflite import Tflite
from edgebuild.vocabulary.errors import InvalidDestination, NotExportable, NothingBuilt
from edgebuild.vocabulary.measurement import Evidence, Measurement
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.units import Fraction
from edgebuild.vocabulary.verdict import Status

ROOT = Path(__file__).parents[1]
DIGITS = str(ROOT / "benchmarks" / "digits.py")
TARGET = "robot-raspberry-pi-5"
QUICK = (Precision.FP32, Precision.INT8_STATIC)


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEBUILD_CACHE", str(tmp_path_factory.mktemp("cache")))
        # What a busy machine leaves inconclusive is measured again; that is tested elsewhere.
        patch.setattr(Measurement, "is_conclusive", True)
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("dist") / "digits"
    return edgebuild.build(DIGITS, TARGET, out=out, precisions=QUICK)


def small_workload(name: str) -> Workload:
    specimen = ZOO[name]()
    return Workload(
        name=name,
        network=specimen.network,
        example=specimen.example,
        calibration=samples(specimen, 16, seed=0),
        validation=samples(specimen, 8, seed=1),
        test=samples(specimen, 8, seed=2),
    )


def test_a_bundle_holds_all_that_it_promises(digits: Bundle) -> None:
    names = {path.name for path in digits.path.iterdir()}
    model = digits.manifest.artifact.file
    assert names == {
        "manifest.json",
        model,
        "golden",
        "run.py",
        "report.md",
        "report.html",
        "NOTICE",
    }
    assert "CC-BY-4.0" in (digits.path / "NOTICE").read_text()


def test_a_bundle_reads_back_as_it_was_written(digits: Bundle) -> None:
    assert load_bundle(digits.path) == digits


def test_the_artifact_is_as_good_as_the_network_on_unseen_data(digits: Bundle) -> None:
    floats = digits.manifest.workload.float_score
    assert floats["test"] > 0.97
    assert digits.manifest.figures["score"].value > floats["test"] - 0.02


def test_no_split_shares_a_sample_with_another(digits: Bundle) -> None:
    assert len(set(digits.manifest.workload.digests.values())) == 3


def test_what_was_not_measured_on_the_target_never_looks_measured(digits: Bundle) -> None:
    figures = digits.manifest.figures
    assert figures["latency_p99"].evidence is Evidence.PREDICTED
    assert figures["memory"].evidence is Evidence.PREDICTED
    met = [line.name for line in digits.verdict.lines if line.status is Status.MET]
    assert met == ["storage"]


def test_every_recipe_is_listed_with_its_score_or_its_failure(digits: Bundle) -> None:
    for trial in digits.manifest.tried:
        assert trial.failure or trial.score > 0
    tried = {(trial.recipe.format, trial.recipe.name) for trial in digits.manifest.tried}
    assert {(form, name) for form in ("onnx", "tflite") for name in QUICK} <= tried


def test_integer_artifacts_ran_on_integer_kernels(digits: Bundle) -> None:
    for trial in digits.manifest.tried:
        if trial.recipe.name == Precision.INT8_STATIC and not trial.failure:
            assert trial.figures["integer_kernels"].value > 0.5


def test_a_second_build_computes_nothing_again(
    digits: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("exported again")

    monkeypatch.setattr(Onnx, "export", fail)
    monkeypatch.setattr(Tflite, "export", fail)
    again = edgebuild.build(DIGITS, TARGET, out=tmp_path / "again", precisions=QUICK)
    assert again.manifest.artifact.sha256 == digits.manifest.artifact.sha256
    assert again.manifest.measurement == digits.manifest.measurement


def test_a_changed_weight_is_another_network(tmp_path: Path) -> None:
    first, second = small_workload("tuple-output"), small_workload("tuple-output")
    with torch.no_grad():
        next(second.network.parameters()).mul_(1.5)
    prints = [
        edgebuild.build(
            one, "host", out=tmp_path / str(number), precisions=[Precision.FP32], formats=["onnx"]
        ).manifest
        for number, one in enumerate((first, second))
    ]
    assert prints[0].workload.fingerprint != prints[1].workload.fingerprint
    assert prints[0].artifact.sha256 != prints[1].artifact.sha256


def test_on_the_host_measured_lines_are_met(tmp_path: Path) -> None:
    bundle = edgebuild.build(
        small_workload("two-inputs"),
        "host",
        Budget.parse(latency_p99="10 s", memory="2 GB", storage="1 MB"),
        out=tmp_path / "out",
        precisions=[Precision.FP32],
        formats=["tflite"],
    )
    statuses = {line.name: line.status for line in bundle.verdict.lines}
    # A latency that is INCONCLUSIVE on a busy machine still lies far below ten seconds.
    assert set(statuses.values()) == {Status.MET}


def test_the_nearest_bundle_is_written_where_none_fits(tmp_path: Path) -> None:
    bundle = edgebuild.build(
        small_workload("dict-output"),
        "host",
        Budget.parse(storage="1 kB", accuracy_drop="100 %"),
        out=tmp_path / "out",
        precisions=QUICK,
        minutes=0.0,
    )
    assert bundle.verdict.status is Status.BREACHED
    assert bundle.verdict.binding is not None
    assert bundle.verdict.binding.name == "storage"
    sizes = [t.figures["storage"].value for t in bundle.manifest.tried if not t.failure]
    assert bundle.manifest.artifact.size == min(sizes)


class SortsIt(nn.Module):
    """Ends in an operator that TFLite does not have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(16, 32)

    def forward(self, row: torch.Tensor) -> torch.Tensor:
        return torch.topk(self.layer(row), 4).values


def test_what_one_format_lacks_is_named_and_the_other_is_built(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    splits = [[(torch.randn(1, 16, generator=draw), None) for _ in range(8)] for _ in range(3)]
    workload = Workload("sorts", SortsIt().eval(), (torch.zeros(1, 16),), *splits)
    bundle = edgebuild.build(workload, "host", out=tmp_path / "out", precisions=[Precision.FP32])
    assert bundle.manifest.artifact.format == "onnx"
    failures = [t.failure for t in bundle.manifest.tried if t.recipe.format == "tflite"]
    assert len(failures) == 1
    assert "topk" in failures[0]


def test_what_no_format_can_express_is_refused_with_those_that_may(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    splits = [[(torch.randn(1, 16, generator=draw), None) for _ in range(8)] for _ in range(3)]
    workload = Workload("sorts", SortsIt().eval(), (torch.zeros(1, 16),), *splits)
    with pytest.raises(NotExportable, match=r"topk.* To build it, try --format onnx"):
        edgebuild.build(workload, "host", out=tmp_path / "out", formats=["tflite"])
    assert not (tmp_path / "out").exists()


def test_nothing_built_gives_every_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails = small_build.failing(ValueError("the converter is out of order"))
    monkeypatch.setattr("edgebuild.exporters.onnx.Onnx.export", fails)
    monkeypatch.setenv("EDGEBUILD_CACHE", str(tmp_path / "cache"))
    with pytest.raises(NothingBuilt, match="onnx fp32: ValueError: the converter is out of order"):
        edgebuild.build(
            *(small_build.workload(), "host"),
            out=tmp_path / "out",
            formats=["onnx"],
            precisions=[Precision.FP32],
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["gru", "two-inputs"])
def test_any_network_becomes_a_bundle(name: str, tmp_path: Path) -> None:
    bundle = edgebuild.build(
        small_workload(name),
        "host",
        Budget.parse(accuracy_drop="100 %"),
        out=tmp_path / "out",
        precisions=[Precision.FP32, Precision.INT8_DYNAMIC],
    )
    fp32 = [t for t in bundle.manifest.tried if t.recipe.name == Precision.FP32]
    assert all(t.parity is not None and t.parity.relative_error < 1e-3 for t in fp32)
    assert not any(t.failure for t in fp32)


def test_a_checkpoint_folder_becomes_a_bundle(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs edgebuild[hf]")
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=50,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).eval().save_pretrained(tmp_path / "hf")
    bundle = edgebuild.build(
        str(tmp_path / "hf"),
        "host",
        Budget(accuracy_drop=Fraction(0.5)),
        out=tmp_path / "out",
        precisions=[Precision.FP32],
    )
    stand_in = "agreement with the original, on synthetic inputs"
    assert bundle.manifest.workload.scored_by == stand_in
    for report in ("report.md", "report.html"):
        told = (bundle.path / report).read_text()
        assert f"accuracy drop ({stand_in})" in told, report
    assert bundle.manifest.figures["score"].value == 1.0
    assert "synthetic" in (bundle.path / "NOTICE").read_text()


def test_a_score_that_fails_is_the_users(tmp_path: Path) -> None:
    def score(outputs: Any, labels: Any) -> float:
        return float(outputs["no such output"].mean())

    workload = small_workload("two-inputs")
    workload = Workload(**{**workload.__dict__, "score": score})
    with pytest.raises(edgebuild.vocabulary.errors.InvalidWorkload, match="score function failed"):
        edgebuild.build(workload, "host", out=tmp_path / "out", precisions=[Precision.FP32])


def test_a_score_sees_the_networks_own_structure(tmp_path: Path) -> None:
    seen: list[dict[str, tuple[int, ...]]] = []

    def score(outputs: dict[str, np.ndarray], labels: None) -> float:
        assert all(isinstance(array, np.ndarray) for array in outputs.values())
        seen.append({name: array.shape[1:] for name, array in outputs.items()})
        return 1.0

    workload = small_workload("dict-output")
    workload = Workload(**{**workload.__dict__, "score": score})
    edgebuild.build(
        workload, "host", out=tmp_path / "out", precisions=[Precision.FP32], formats=["onnx"]
    )
    network = workload.network(*workload.example)
    assert seen[0] == {name: tuple(tensor.shape[1:]) for name, tensor in network.items()}


def command(out: Path, *options: str) -> list[str]:
    program = str(Path(sys.executable).with_name("edgebuild"))
    return [program, "build", DIGITS, "-t", "host", "-o", str(out), *options]


def interrupted(out: Path, cache: Path, send: Callable[[subprocess.Popen[str]], None]) -> int:
    """Starts a build, interrupts it while it exports, and returns its exit code."""
    process = subprocess.Popen(
        command(out, "--precision", "fp32", "--precision", "int8-static"),
        env={**os.environ, "EDGEBUILD_CACHE": str(cache)},
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=heeding_interrupts,
    )
    deadline = time.monotonic() + 120
    while not list(cache.glob("onnx-float/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, "the build ended before it could be interrupted"
    send(process)
    return process.wait(timeout=60)


def test_an_interrupted_build_leaves_nothing_and_goes_on_later(tmp_path: Path) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache"
    assert interrupted(out, cache, lambda process: process.send_signal(signal.SIGINT)) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert not list(cache.glob("*/.part-*"))


def test_a_killed_build_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache"
    assert interrupted(out, cache, lambda process: process.kill()) == -signal.SIGKILL
    assert not out.exists()
    environment = {**os.environ, "EDGEBUILD_CACHE": str(cache)}
    options = ["--precision", "fp32", "--format", "onnx"]
    subprocess.run(command(out, *options), env=environment, check=True, stderr=subprocess.DEVNULL)
    load_bundle(out)
    assert not list((cache / "onnx-float").glob(".part-*"))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_leaves_nothing(tiny_disk: Path) -> None:
    with pytest.raises(InvalidDestination, match="No space left on device"):
        edgebuild.build(DIGITS, TARGET, out=tiny_disk / "out", precisions=QUICK, formats=["onnx"])
    assert list(tiny_disk.iterdir()) == []


def test_a_bundle_that_kept_its_budget_outlives_one_that_breaches(tmp_path: Path) -> None:
    for storage in ("1 GB", "1 B"):
        edgebuild.build(
            small_workload("two-inputs"),
            "host",
            Budget.parse(storage=storage),
            out=tmp_path / "out",
            formats=["onnx"],
            precisions=[Precision.FP32],
            minutes=0,
        )
    assert load_bundle(tmp_path / "out").verdict.status is Status.BREACHED
    assert load_bundle(tmp_path / "out-kept").manifest.budget.storage == 1e9
