"""Energy counters wrap around without a loss; what is inside a package is not added to it."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebuild.meters.rapl import Rapl, used
from edgebuild.vocabulary.errors import MeterUnavailable
from edgebuild.vocabulary.measurement import Evidence

Recorded = Callable[[str], Path]
REASONS = {
    "pc-counters-for-root-only": "energy_uj cannot be read: since Linux 5.10 only root may",
    "virtual-machine": "holds no package: no RAPL, or hidden by a hypervisor",
}


class Clock:
    """Shows what it is set to."""

    now = 1_795_550_400.0

    def __call__(self) -> float:
        return self.now


def count(root: Path, zone: str, microjoules: int) -> None:
    (root / zone / "energy_uj").write_text(f"{microjoules}\n")


def test_package_and_memory_count_once(recorded: Recorded) -> None:
    root, clock = recorded("laptop"), Clock()
    meter = Rapl(str(root), clock=clock)
    sensor = meter.sensor()
    assert sensor.scope == "package-0 + dram"
    assert (sensor.evidence, sensor.is_whole) == (Evidence.MEASURED, False)
    assert meter.read() == []
    clock.now += 0.5
    # The package wraps: 328,850 µJ to its end and 2,171,150 µJ after it are 2.5 J.
    count(root, "intel-rapl:0", 2_171_150)
    count(root, "intel-rapl:0:1", 1_000_500_000)
    (sample,) = meter.read()
    assert sample.watts == pytest.approx((2.5 + 0.5) / 0.5)
    assert sample.at == clock.now


def test_sockets_are_added_up(recorded: Recorded) -> None:
    root, clock = recorded("server-two-sockets"), Clock()
    meter = Rapl(str(root), clock=clock)
    meter.read()
    clock.now += 2
    count(root, "intel-rapl:0", 160_000_000)
    count(root, "intel-rapl:1", 300_000_000)
    assert [sample.watts for sample in meter.read()] == [pytest.approx(80.0)]


def test_two_readings_at_one_time_say_nothing(recorded: Recorded) -> None:
    meter = Rapl(str(recorded("server-two-sockets")), clock=Clock())
    assert [*meter.read(), *meter.read()] == []


@pytest.mark.parametrize("recording", REASONS)
def test_what_cannot_be_read_says_why(recorded: Recorded, recording: str) -> None:
    with pytest.raises(MeterUnavailable, match=REASONS[recording]):
        Rapl(str(recorded(recording))).sensor()


@given(
    limit=st.integers(2, 2**40),
    start=st.integers(0, 2**40),
    shares=st.lists(st.floats(0, 0.999), max_size=20),
)
def test_a_counter_that_wraps_loses_nothing(limit: int, start: int, shares: list[float]) -> None:
    steps = [int(share * limit) for share in shares]
    totals = [start + sum(steps[:done]) for done in range(len(steps) + 1)]
    readings = [total % limit for total in totals]
    found = sum(used(before, now, limit) for before, now in itertools.pairwise(readings))
    assert found == pytest.approx(sum(steps) / 1e6)


@given(
    watts=st.floats(0.5, 400),
    periods=st.lists(st.floats(0.01, 10), min_size=1, max_size=20),
    start=st.integers(0, 65_532_610_986),
)
def test_constant_power_is_read_as_it_is_across_every_wrap(
    watts: float, periods: list[float], start: int
) -> None:
    limit, clock, joules = 65_532_610_987, Clock(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        zone = Path(folder) / "intel-rapl:0"
        zone.mkdir()
        (zone / "name").write_text("package-0")
        (zone / "max_energy_range_uj").write_text(str(limit))
        count(Path(folder), zone.name, start)
        meter = Rapl(folder, clock=clock)
        meter.read()
        for period in periods:
            clock.now += period
            joules += watts * period
            count(Path(folder), zone.name, (start + round(joules * 1e6)) % limit)
            (sample,) = meter.read()
            assert sample.watts == pytest.approx(watts, rel=1e-3)
