"""Energy per inference from what a meter showed: (active - idle power) x time."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from edgebuild.vocabulary.errors import MeterUnavailable
from edgebuild.vocabulary.measurement import CONFIDENCE, Evidence, Figure
from edgebuild.vocabulary.power import Draw, PowerSample, Sensor, Stretch
from edgebuild.vocabulary.units import Hertz, Seconds

# Fewer samples say nothing about how much power varies.
FEWEST = 5
# Samples close in time resemble each other; means over a tenth of a stretch hardly do.
BLOCKS = 10
# How much of a stretch must lie between samples.
COVERED = 0.75
# A pause this many times as long as usual is a hole in the record.
HOLE = 5.0


@dataclass(frozen=True)
class Mean:
    """Mean power over a stretch, in watts, with half its 99 % confidence interval.

    `period` is what lies between two samples as a rule, in seconds.
    """

    watts: float
    error: float
    period: Seconds


def draw(
    trace: Sequence[PowerSample],
    sensor: Sensor,
    where: str,
    idle: Stretch,
    active: Stretch,
    inferences: int,
) -> Draw:
    """What a run of so many inferences drew above the idle stretch, as the meter showed it.

    Raises:
        MeterUnavailable: too few samples lie within a stretch to say, or all are the same.
    """
    _refuse_stuck(trace, sensor, Stretch(idle.began, active.ended))
    rest = mean_power(trace, idle, f"{sensor.name}, idle")
    busy = mean_power(trace, active, f"{sensor.name}, running")
    error = math.hypot(busy.error, rest.error)
    above = replace(busy, watts=busy.watts - rest.watts, error=error)
    each = Seconds(active.length / inferences)
    energy = replace(above, watts=above.watts * each, error=above.error * each)
    note = "" if above.watts > above.error else "not told apart from idle: run longer"
    return Draw(
        sensor=sensor,
        idle=_figure(rest, sensor, where),
        active=_figure(busy, sensor, where),
        above_idle=_figure(above, sensor, where, note),
        energy=_figure(energy, sensor, where, note),
        inference=each,
        idle_during=idle,
        active_during=active,
    )


def power_at(found: Draw, rate: Hertz) -> Figure:
    """Power above idle at so many inferences a second, in watts; at most that of a busy device."""
    busy = min(rate * found.inference, 1.0)
    above = found.above_idle
    low, high = above.interval
    note = _joined(above.note, "energy of inferences without a pause, times their rate")
    return replace(above, value=above.value * busy, low=low * busy, high=high * busy, note=note)


def mean_power(trace: Sequence[PowerSample], stretch: Stretch, what: str = "power") -> Mean:
    """The mean over the intervals between samples that lie wholly within the stretch.

    Raises:
        MeterUnavailable: they are too few, or leave too much of the stretch out.
    """
    pieces = _without_holes(list(_pieces(trace, stretch)))
    covered = sum(length for length, _ in pieces)
    if len(pieces) < FEWEST:
        raise MeterUnavailable(
            f"{what}: {len(pieces)} samples in {stretch.length:.3g} s, and {FEWEST} are the fewest "
            f"that say something{_elsewhere(trace, stretch)}"
        )
    if covered < COVERED * stretch.length:
        raise MeterUnavailable(
            f"{what}: the samples cover {covered:.3g} s of {stretch.length:.3g} s"
        )
    blocks = [_weighted(block) for block in _in_blocks(pieces)]
    spread = statistics.stdev(blocks) / math.sqrt(len(blocks))
    usual = Seconds(statistics.median(length for length, _ in pieces))
    return Mean(_weighted(pieces), _student(len(blocks)) * spread, usual)


def _refuse_stuck(trace: Sequence[PowerSample], sensor: Sensor, whole: Stretch) -> None:
    """A sensor that stands still would say that nothing above idle was drawn."""
    shown = {sample.watts for sample in trace if whole.began <= sample.at <= whole.ended}
    if len(shown) == 1:
        raise MeterUnavailable(
            f"{sensor.name}: {shown.pop():.4g} W throughout, idle and running: its sensor stands "
            "still, or what is read is a copy"
        )


def _pieces(trace: Sequence[PowerSample], stretch: Stretch) -> Iterator[tuple[float, float]]:
    """Seconds and watts; an interval across an edge has something else mixed in."""
    for before, after in itertools.pairwise(trace):
        if before.at >= stretch.began and after.at <= stretch.ended and after.at > before.at:
            yield after.at - before.at, after.watts


def _without_holes(pieces: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if not pieces:
        return []
    usual = statistics.median(length for length, _ in pieces)
    return [(length, watts) for length, watts in pieces if length <= HOLE * usual]


def _elsewhere(trace: Sequence[PowerSample], stretch: Stretch) -> str:
    """A hint where the meter's clock and this machine's hardly agree."""
    if not trace:
        return ""
    if trace[0].at > stretch.ended:
        return f": the first came {trace[0].at - stretch.ended:.3g} s later, do the clocks agree?"
    if trace[-1].at < stretch.began:
        return f": the last came {stretch.began - trace[-1].at:.3g} s before, do the clocks agree?"
    return ""


def _in_blocks(pieces: list[tuple[float, float]]) -> Iterator[list[tuple[float, float]]]:
    count = min(BLOCKS, len(pieces))
    for block in range(count):
        yield pieces[block * len(pieces) // count : (block + 1) * len(pieces) // count]


def _weighted(pieces: list[tuple[float, float]]) -> float:
    length = math.fsum(length for length, _ in pieces)
    return math.fsum(length * watts for length, watts in pieces) / length


def _student(count: int) -> float:
    # Imported here: scipy takes a second, and reading bundles must not.
    from scipy.stats import t

    return float(t.ppf(1 - (1 - CONFIDENCE) / 2, count - 1))


def _figure(found: Mean, sensor: Sensor, where: str, note: str = "") -> Figure:
    """With its label: the sensor, its rate and scope."""
    source = f"read in {sensor.source}" if sensor.source else ""
    return Figure(
        value=found.watts,
        evidence=sensor.evidence,
        where=f"{where} by {sensor.name}, every {found.period:.2g} s, {sensor.scope}",
        low=found.watts - found.error,
        high=found.watts + found.error,
        note=_joined(sensor.note, source, note),
        # What flows past the sensor may be any amount.
        is_bounded=sensor.is_whole or sensor.evidence is not Evidence.MEASURED,
    )


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
