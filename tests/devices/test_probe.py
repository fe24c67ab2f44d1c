"""A probe over ssh times the device's own kernels, by nothing but its Python."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from devices.boards import Board
from devices.test_build import SHELF

from edgebuild.cache import Cache
from edgebuild.search import probe as probing
from edgebuild.search.probe import ProbeNetwork, probe
from edgebuild.search.probe_blocks import tiny_blocks
from edgebuild.vocabulary.calibration import ProfileEffort
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.silence import Silence

pytestmark = pytest.mark.ssh

FEW = (ProbeNetwork("tiny", lambda draw: tiny_blocks(draw, 2), (Precision.FP32,)),)


def test_a_board_is_probed_over_ssh(
    pi: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "PROFILED", ProfileEffort(hot=2, cold=1))
    monkeypatch.setattr(probing, "TIMED", replace(probing.TIMED, seconds=0.0, count=2))
    runtimes = tuple(replace(runtime, threads=1) for runtime in SHELF.runtimes)
    target = replace(SHELF, runtimes=runtimes)
    with pi.device() as device:
        found = probe(target, device, Cache(tmp_path / "cache"), Silence(), FEW)
    assert found.device == "ssh://root@127.0.0.1"
    for runtime in found.runtimes:
        (network,) = runtime.networks
        assert runtime.version
        assert {"depthwise fp32", "convolution 1x1 fp32"} <= {
            kernel.work.kind for kernel in network.kernels
        }
