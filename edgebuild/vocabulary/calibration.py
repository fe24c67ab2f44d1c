"""What a probe has timed on a device: kernels with their work, and whole networks of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from edgebuild.vocabulary.artifact import KernelWork
from edgebuild.vocabulary.units import Bytes, Seconds

# The runtimes' clocks tick in microseconds: nothing shorter is told apart.
TICK = Seconds(1e-6)


@dataclass(frozen=True)
class ProfileEffort:
    """How many runs are profiled: after a run of the same, and after the caches were emptied."""

    hot: int
    cold: int


@dataclass(frozen=True)
class KernelSample:
    """One kernel's time: with its data in the caches as a repeated run leaves them, and with none.

    Both hold what the profile itself takes to note them.
    """

    kernel: str
    work: KernelWork
    hot: Seconds
    cold: Seconds


@dataclass(frozen=True)
class Load:
    """What a call hands to the runtime and takes from it: so many tensors, and their bytes."""

    tensors: int
    size: Bytes


@dataclass(frozen=True)
class NetworkSample:
    """A network of the probe: its kernels one by one, and what a call of all of them takes."""

    name: str
    kernels: tuple[KernelSample, ...]
    load: Load
    seconds: Seconds


@dataclass(frozen=True)
class ProbedRuntime:
    """One runtime of the device, on as many threads as the target gives it."""

    name: str
    version: str
    threads: int
    networks: tuple[NetworkSample, ...]

    def __hash__(self) -> int:
        """Of the few words that tell it from others: thousands of timings take long to hash."""
        return hash((self.name, self.version, self.threads, len(self.networks)))


@dataclass(frozen=True)
class Calibration:
    """One probe of a device."""

    device: str
    taken_at: str
    runtimes: tuple[ProbedRuntime, ...]

    def runtime(self, name: str) -> ProbedRuntime | None:
        """What was probed of a runtime; None where it was not."""
        return next((one for one in self.runtimes if one.name == name), None)


def typical(runs: Sequence[float]) -> Seconds:
    """What a run takes when nothing else gets in its way.

    A mean, because clocks tick in microseconds and tiny kernels take none or one; of the faster
    half, because whatever else the machine does can only slow a kernel down.
    """
    faster = sorted(runs)[: max((len(runs) + 1) // 2, 1)]
    # Half of the runs of a tiny kernel would be those that took no tick.
    is_tiny = bool(runs) and statistics.median(runs) < 10e-6
    kept = [min(run, 30e-6) for run in runs] if is_tiny else faster
    return Seconds(statistics.fmean(kept)) if kept else Seconds(0.0)
