"""Energy per inference is power above idle times time, with the error of the samples."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebuild.bundles.energy import draw, mean_power, power_at
from edgebuild.vocabulary.errors import MeterUnavailable
from edgebuild.vocabulary.measurement import Evidence
from edgebuild.vocabulary.power import Draw, PowerSample, Sensor, Stretch

START = 1_795_550_400.0
IDLE = Stretch(START, START + 10)
ACTIVE = Stretch(START + 12, START + 22)
SENSOR = Sensor("rapl", "package-0", 0.1, Evidence.MEASURED, is_whole=True)
WATTS = st.floats(0.01, 100)
# Seconds between samples, none a hole in the record of the others.
PERIODS = st.lists(st.floats(0.1, 0.4), min_size=1, max_size=20)


def trace(periods: list[float], idle: float, active: float) -> list[PowerSample]:
    """Steady power that steps between the two stretches; the periods come again and again."""
    samples, at = [PowerSample(START - 1, idle)], START - 1
    for period in itertools.cycle(periods):
        at += period
        samples.append(PowerSample(at, idle if at < START + 11 else active))
        if at > ACTIVE.ended:
            return samples
    return []


def steady(idle: float = 2.0, active: float = 5.0) -> list[PowerSample]:
    return trace([0.1], idle, active)


def drawn(samples: list[PowerSample], sensor: Sensor = SENSOR, inferences: int = 1000) -> Draw:
    return draw(samples, sensor, "host", IDLE, ACTIVE, inferences)


# ---- the mean over a stretch


@given(periods=PERIODS, watts=WATTS)
def test_constant_power_is_its_own_mean_without_error(periods: list[float], watts: float) -> None:
    found = mean_power(trace(periods, watts, watts), IDLE)
    assert found.watts == pytest.approx(watts)
    assert found.error == pytest.approx(0, abs=1e-9 * watts)


@given(
    periods=PERIODS,
    watts=st.lists(WATTS, min_size=250, max_size=250),
    factor=st.floats(0.1, 10),
)
def test_a_mean_lies_among_its_samples_and_scales_with_them(
    periods: list[float], watts: list[float], factor: float
) -> None:
    steps = trace(periods, 1, 1)
    samples = [replace(step, watts=w) for step, w in zip(steps, watts, strict=False)]
    found = mean_power(samples, IDLE)
    inside = [s.watts for s in samples if IDLE.began <= s.at <= IDLE.ended]
    assert min(inside) <= found.watts * (1 + 1e-9)
    assert found.watts <= max(inside) * (1 + 1e-9)
    scaled = mean_power([replace(s, watts=s.watts * factor) for s in samples], IDLE)
    assert scaled.watts == pytest.approx(found.watts * factor)
    assert scaled.error == pytest.approx(found.error * factor)


def test_an_interval_counts_by_its_length() -> None:
    """A counter's reading after a long pause stands for all of it."""
    samples = [PowerSample(START + at, w) for at, w in [(0, 0), (1, 1), (2, 1), (3, 1), (6, 4)]]
    samples += [PowerSample(START + at, 1) for at in (7, 8, 9, 10)]
    assert mean_power(samples, IDLE).watts == pytest.approx((7 * 1 + 3 * 4) / 10)


def test_what_lies_across_an_edge_does_not_count() -> None:
    samples = [*steady(), PowerSample(START + 100, 1e6)]
    assert mean_power(samples, ACTIVE).watts == pytest.approx(5.0)
    mixed = [PowerSample(START - 0.05 + 0.1 * n, 1.0 if n else 1e6) for n in range(110)]
    assert mean_power(mixed, IDLE).watts == pytest.approx(1.0)


def test_the_interval_covers_the_truth_of_noise() -> None:
    """Ninety-nine of a hundred; noise that lasts longer than a sample does not fool it."""
    import random

    missed = 0
    for seed in range(200):
        drawn_by, noise, samples = random.Random(seed), 0.0, []
        for number in range(100):
            noise = 0.5 * noise + drawn_by.gauss(0, 1)
            samples.append(PowerSample(START + 0.1 * number, 10 + noise))
        found = mean_power(samples, IDLE)
        missed += abs(found.watts - 10) > found.error
    assert missed <= 8


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ([], "power: 0 samples in 10 s, and 5 are the fewest"),
        ([PowerSample(START + 3 * n, 1) for n in range(4)], "3 samples in 10 s"),
        ([PowerSample(START + 0.1 * n, 1) for n in range(20)], "cover 1.9 s of 10 s"),
        ([PowerSample(START + 100 + n, 1) for n in range(9)], "came 90 s later, do the clocks"),
        ([PowerSample(START - 100 + n, 1) for n in range(9)], "came 92 s before, do the clocks"),
        (
            [PowerSample(START + n * 0.1 + (6 if n > 9 else 0), 1) for n in range(40)],
            "cover 3.8 s of 10 s",
        ),
    ],
    ids=["none", "few", "half", "later", "earlier", "hole"],
)
def test_too_few_samples_are_no_measurement(samples: list[PowerSample], reason: str) -> None:
    with pytest.raises(MeterUnavailable, match=reason):
        mean_power(samples, IDLE)


# ---- what a run drew


@given(periods=PERIODS, idle=WATTS, above=WATTS, inferences=st.integers(1, 10**6))
def test_energy_of_constant_power_is_power_above_idle_times_time(
    periods: list[float], idle: float, above: float, inferences: int
) -> None:
    found = drawn(trace(periods, idle, idle + above), inferences=inferences)
    assert found.idle.value == pytest.approx(idle)
    assert found.active.value == pytest.approx(idle + above)
    assert found.energy.value == pytest.approx(above * 10 / inferences, rel=1e-6)
    assert found.energy.value * inferences == pytest.approx(
        found.above_idle.value * ACTIVE.length, rel=1e-6
    )


def test_every_figure_has_the_sensors_label() -> None:
    found = drawn(steady())
    for figure in (found.idle, found.active, found.above_idle, found.energy):
        assert figure.evidence is Evidence.MEASURED
        assert (figure.where, figure.note) == ("host by rapl, every 0.1 s, package-0", "")
        assert figure.is_bounded


def test_a_part_of_the_board_bounds_the_whole_from_below() -> None:
    found = drawn(steady(), replace(SENSOR, is_whole=False, note="the processor alone"))
    assert not found.energy.is_bounded
    assert "the processor alone" in found.energy.note


def test_a_sensor_that_stands_still_is_no_measurement_of_nothing() -> None:
    with pytest.raises(MeterUnavailable, match="rapl: 2 W throughout, idle and running"):
        drawn(steady(2.0, 2.0))


def test_what_may_be_a_copy_says_where_it_is_read() -> None:
    found = drawn(steady(), replace(SENSOR, source="a/copy"))
    assert found.energy.note == "read in a/copy"


def test_the_rate_is_what_the_samples_came_at_and_not_what_was_asked() -> None:
    found = drawn(trace([0.5], 2.0, 5.0))
    assert "every 0.5 s" in found.energy.where


def test_a_fit_stays_a_fit() -> None:
    found = drawn(steady(), replace(SENSOR, evidence=Evidence.CALIBRATED_MODEL))
    assert found.energy.evidence is Evidence.CALIBRATED_MODEL


def test_what_is_not_told_apart_from_idle_says_so() -> None:
    waves = [replace(s, watts=3 + math.sin(s.at)) for s in steady()]
    found = drawn(waves)
    assert found.energy.interval[0] < 0 < found.energy.interval[1]
    assert "not told apart from idle" in found.energy.note


@given(rate=st.floats(0.1, 1e6))
def test_power_at_a_rate_grows_with_it_until_the_device_is_always_busy(rate: float) -> None:
    found = drawn(steady())
    assert found.inference == pytest.approx(0.01)
    power = power_at(found, rate)
    assert power.value == pytest.approx(min(found.energy.value * rate, 3.0))
    low, high = power.interval
    assert low <= power.value <= high
    assert power.note.endswith("inferences without a pause, times their rate")
