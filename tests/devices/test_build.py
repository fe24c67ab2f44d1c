"""A build that measures on the target itself: its figures are measured, and may be met."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import small_build
from devices.boards import Board

from edgebuild import build
from edgebuild.bundles.manifest import Bundle
from edgebuild.inputs.target_file import load_target
from edgebuild.search import measure
from edgebuild.vocabulary.errors import DeviceError, InputError
from edgebuild.vocabulary.measurement import Evidence
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.target import Budget, Target
from edgebuild.vocabulary.verdict import Status

pytestmark = pytest.mark.ssh

PI = load_target(small_build.TARGET)
# A board with the processor that the tests have.
SHELF = replace(PI, name="shelf", compute=replace(PI.compute, isa="x86-64"), budget=Budget())


def built(target: Target, device: str, folder: Path, **wishes: str) -> Bundle:
    return build(
        small_build.workload(),
        target,
        Budget.parse(**wishes),
        out=folder / "bundle",
        formats=("onnx",),
        precisions=(Precision.INT8_STATIC,),
        minutes=0.0,
        device=device,
    )


def test_what_the_device_measured_is_measured(
    pi: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "SEARCHING", replace(measure.SEARCHING, seconds=0.0))
    bundle = built(SHELF, pi.url, tmp_path, latency_p99="1 s", memory="1 GB")
    figures = bundle.manifest.figures
    for name in ("latency_p99", "memory", "accuracy_drop", "score"):
        assert figures[name].evidence is Evidence.MEASURED
        assert figures[name].where.startswith("ssh://root@127.0.0.1 (")
    assert {line.name: line.status for line in bundle.verdict.lines} == {
        "latency_p99": Status.MET,
        "memory": Status.MET,
    }
    # Which kernels ran is read from a profile, and profiles are taken here.
    assert figures["integer_kernels"].where == "the build machine"
    assert "This is not the target" not in (bundle.path / "report.html").read_text()


def test_a_device_with_another_processor_is_not_taken_for_the_target(
    pi: Board, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="is x86_64, and robot-raspberry-pi-5 is aarch64"):
        built(PI, pi.url, tmp_path)
    assert list(tmp_path.glob("bundle*")) == []


def test_a_device_that_is_not_there_is_found_out_before_any_work(pi: Board, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="refuses the connection"):
        built(SHELF, f"{pi.url}:23", tmp_path)


@pytest.mark.parametrize("stand_in", ["local", "twin:1GB", "emulated://cortex-a76"])
def test_nothing_stands_in_for_the_target_unsaid(stand_in: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not shelf, .*or build without --device"):
        built(SHELF, stand_in, tmp_path)
