"""A probe times small networks kernel by kernel, and what it wrote is read back as a profile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgebuild import catalog
from edgebuild.build import calibrate
from edgebuild.cache import Cache
from edgebuild.inputs.calibration_file import write_calibrated
from edgebuild.inputs.target_file import load_target, profile_text
from edgebuild.search import probe as probing
from edgebuild.search.probe import ProbeNetwork, probe, undisturbed
from edgebuild.search.probe_blocks import image_blocks, tiny_blocks, token_blocks
from edgebuild.vocabulary.artifact import KernelWork
from edgebuild.vocabulary.calibration import KernelSample, Load, NetworkSample, ProfileEffort
from edgebuild.vocabulary.errors import InputError, InvalidDestination
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.silence import Silence
from edgebuild.vocabulary.units import Bytes, Seconds

FEW = (ProbeNetwork("tiny", lambda draw: tiny_blocks(draw, 3), (Precision.FP32,)),)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "PROFILED", ProfileEffort(hot=2, cold=1))
    monkeypatch.setattr(probing, "TIMED", replace(probing.TIMED, seconds=0.0, count=2))


@pytest.mark.usefixtures("quick")
def test_every_kernel_of_both_runtimes_is_timed_with_its_work(tmp_path: Path) -> None:
    target = load_target("host")
    with catalog.device("local") as device:
        found = probe(target, device, Cache(tmp_path / "cache"), Silence(), FEW)
    assert [runtime.name for runtime in found.runtimes] == [r.name for r in target.runtimes]
    for runtime in found.runtimes:
        (network,) = runtime.networks
        assert network.name == "tiny fp32"
        assert network.seconds > 0
        # 8 channels of 4 x 4 in two blocks and 4 tokens of 16 in one, in and out, in fp32.
        assert network.load == Load(6, Bytes(2 * 4 * (2 * 8 * 16 + 4 * 16)))
        kinds = {kernel.work.kind for kernel in network.kernels}
        assert {"convolution 1x1 fp32", "depthwise fp32", "linear fp32"} <= kinds
    write_calibrated(profile_text("host"), tmp_path / "mine.toml", found)
    assert load_target(tmp_path / "mine.toml").calibration == found


def test_of_several_turns_the_fastest_of_each_kernel_counts() -> None:
    first, second = _turn((3e-6, 1e-6), 9e-6), _turn((2e-6, 4e-6), 8e-6)
    found = undisturbed([first, second])
    assert [kernel.hot for kernel in found.kernels] == [2e-6, 1e-6]
    assert [kernel.cold for kernel in found.kernels] == [4e-6, 2e-6]
    assert found.seconds == 8e-6


def test_kernels_that_ran_in_another_order_are_found_again() -> None:
    first, second = _turn((3e-6, 1e-6), 9e-6), _turn((2e-6, 4e-6), 8e-6)
    turned = replace(second, kernels=second.kernels[::-1])
    assert undisturbed([first, turned]) == undisturbed([first, second])


def test_of_a_turn_with_other_kernels_only_the_whole_counts() -> None:
    first, second = _turn((3e-6, 1e-6), 9e-6), _turn((2e-6, 4e-6), 8e-6)
    found = undisturbed([first, replace(second, kernels=second.kernels[:1])])
    assert found.kernels == first.kernels
    assert found.seconds == 8e-6


def _turn(hot: tuple[float, float], seconds: float) -> NetworkSample:
    """Two kernels of different work, twice as slow when they are cold."""
    kernels = tuple(
        KernelSample(
            f"kernel-{number}",
            KernelWork("linear", "fp32", 16, Bytes(64), Bytes(16), Bytes(16), 4, 4 + number),
            Seconds(one),
            Seconds(2 * one),
        )
        for number, one in enumerate(hot)
    )
    return NetworkSample("two", kernels, Load(2, Bytes(8)), Seconds(seconds))


def test_the_same_seed_draws_the_same_blocks() -> None:
    import random

    for blocks in (image_blocks, token_blocks, tiny_blocks):
        shapes = [[b.example.shape for b in blocks(random.Random(3), 9)] for _ in range(2)]
        assert shapes[0] == shapes[1]


def test_this_machine_is_not_probed_in_place_of_another(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is another machine than this one"):
        calibrate("robot-raspberry-pi-5", tmp_path / "pi.toml")


def test_a_profile_is_written_to_a_toml_alone(tmp_path: Path) -> None:
    with pytest.raises(InvalidDestination, match="cannot be a profile"):
        calibrate("host", tmp_path / "host.json")


def test_a_profile_that_could_not_be_written_is_refused_before_anything_is_timed() -> None:
    with pytest.raises(InvalidDestination, match="/proc cannot be written to"):
        calibrate("host", "/proc/host.toml")
