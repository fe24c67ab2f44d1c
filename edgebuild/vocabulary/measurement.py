"""Figures with their evidence: raw samples, and the percentiles derived from them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from enum import StrEnum

from edgebuild.vocabulary.units import Bytes, Hertz, Seconds

CONFIDENCE = 0.99
# Halves of a run whose medians differ by more than this are not one distribution.
HALVES_TOLERANCE = 0.05


class Evidence(StrEnum):
    """Where a figure is from; an estimate must never look measured.

    A calibrated model turns readings of the device into the figure by a fit; a modelled bound
    only says how large it may be at most, or must be at least.
    """

    MEASURED = "measured"
    EMULATED = "emulated"
    PREDICTED = "predicted"
    DATASHEET = "datasheet"
    CALIBRATED_MODEL = "calibrated-model"
    MODELLED_BOUND = "modelled-bound"

    @property
    def is_estimate(self) -> bool:
        """Whether a model made the figure."""
        models = (Evidence.PREDICTED, Evidence.CALIBRATED_MODEL, Evidence.MODELLED_BOUND)
        return self in models


@dataclass(frozen=True)
class Figure:
    """A value in SI units with its evidence, and the interval that it lies in.

    `is_bounded` is false where too little was measured to say how large it may be. `basis` is
    what must stand beside its name: what was scored where that is not the task, a power's rate.
    """

    value: float
    evidence: Evidence
    where: str
    low: float | None = None
    high: float | None = None
    note: str = ""
    is_bounded: bool = True
    basis: str = ""

    @property
    def interval(self) -> tuple[float, float]:
        """Low and high; the value itself where no error is known."""
        low = self.value if self.low is None else self.low
        high = self.value if self.high is None else self.high
        return low, high


@dataclass(frozen=True)
class Percentile:
    """One latency percentile with its distribution-free bounds.

    `low` and `high` are order statistics that enclose the true percentile with 99 % confidence;
    `high` is None where the run was too short for one to be large enough.
    `early_stopping` is the upper bound that MLPerf Inference reports for single-stream runs, None
    where the run was too short to claim the percentile at all.
    """

    share: float
    value: Seconds
    low: Seconds
    high: Seconds | None
    early_stopping: Seconds | None


class Outcome(StrEnum):
    """What a measurement says of a limit."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True)
class Window:
    """A stretch of a long run: percentiles in seconds; degrees Celsius and hertz at its end."""

    begins: Seconds
    inferences: int
    p50: Seconds
    p90: Seconds
    p99: Seconds
    temperature: float | None = None
    clock: Hertz | None = None


@dataclass(frozen=True)
class Sustained:
    """A long run in one process: its first and last minute apart, and all windows between.

    Of a run of less than three minutes, the first and the last third.
    """

    seconds: Seconds
    first: Window
    last: Window
    windows: tuple[Window, ...]
    threads: int
    runtime: str
    machine: str
    taken_at: str
    cores: tuple[int, ...] = ()
    governor: str = ""

    @property
    def slowdown(self) -> float:
        """By which share the median is longer at the end."""
        return self.last.p50 / self.first.p50 - 1


@dataclass(frozen=True)
class Measurement:
    """One artifact run in a fresh process: raw latencies, memory over the runtime's, load time."""

    latencies: tuple[Seconds, ...]
    load: Seconds
    peak_memory: Bytes
    peak_anonymous: Bytes
    baseline_memory: Bytes
    cpu_share: float
    threads: int
    runtime: str
    machine: str
    taken_at: str
    # Unix time of the device around the runs, and how many they were; not every runner says it.
    began_at: float | None = None
    ended_at: float | None = None
    inferences: int | None = None
    # The cores that it kept to, and how their clock is governed; "" where nobody says.
    cores: tuple[int, ...] = ()
    governor: str = ""

    def outcome(self, limit: Seconds, share: float = 0.99) -> Outcome:
        """Whether a percentile keeps a limit, as far as the runs can tell with 99 % confidence.

        Where the halves of the run disagree, each must say the same as the whole, and the limit
        lie farther off than the halves lie apart: the machine may change as much once more.
        """
        if len(self.latencies) < 2:
            return Outcome.INCONCLUSIVE
        parts, fast, slow = [self], 1.0, 1.0
        if not self.is_conclusive:
            parts += self._halves
            fast, slow = sorted(half._median for half in self._halves)
        whole, *halves = [part.percentile(share) for part in parts]
        if all(each.low * fast > limit * slow for each in (whole, *halves)):
            return Outcome.FAIL
        if whole.high is None:
            return Outcome.INCONCLUSIVE
        # A half may be too short for a bound where the whole has one.
        high = max(each.high or 0.0 for each in (whole, *halves))
        return Outcome.PASS if high * slow <= limit * fast else Outcome.INCONCLUSIVE

    def percentile(self, share: float) -> Percentile:
        """The given percentile (0.99 for p99) of the latencies, with its bounds."""
        # Imported here: scipy takes a second, and reading figures must not.
        from scipy.stats import binom

        ordered = sorted(self.latencies)
        count = len(ordered)
        tail = (1 - CONFIDENCE) / 2
        above = binom.ppf(1 - tail, count, share)

        def at(rank: float) -> Seconds:
            return ordered[min(max(int(rank), 0), count - 1)]

        return Percentile(
            share=share,
            value=at(share * count),
            low=at(binom.ppf(tail, count, share) - 1),
            high=at(above) if above < count else None,
            early_stopping=self._early_stopping(ordered, share),
        )

    @staticmethod
    def _early_stopping(ordered: list[Seconds], share: float) -> Seconds | None:
        """The t-th largest latency, t as large as 99 % confidence lets it be.

        MLPerf Inference rules, appendix "Early Stopping": a percentile p may be claimed at a
        latency that t of n queries exceed if P(Binomial(n, 1 - p) <= t) <= 1 - 0.99.
        """
        from scipy.stats import binom

        count = len(ordered)
        allowed = int(binom.ppf(1 - CONFIDENCE, count, 1 - share))
        if binom.cdf(allowed, count, 1 - share) > 1 - CONFIDENCE:
            allowed -= 1
        return ordered[count - allowed] if allowed >= 1 else None

    @property
    def is_conclusive(self) -> bool:
        """Whether the two halves of the run agree; else the machine's state changed during it."""
        if len(self.latencies) < 2:
            return False
        first, second = (half._median for half in self._halves)
        return abs(first - second) <= HALVES_TOLERANCE * min(first, second)

    @property
    def _halves(self) -> list[Measurement]:
        """The run up to its middle, and the run from there."""
        middle = len(self.latencies) // 2
        parts = self.latencies[:middle], self.latencies[middle:]
        return [replace(self, latencies=part) for part in parts]

    @property
    def _median(self) -> Seconds:
        return Seconds(statistics.median(self.latencies))
