"""Predicts kernels and whole networks from what a probe has timed on the device."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls

from edgebuild.search.kernel_classes import (
    ENOUGH,
    SHORTEST,
    KernelClass,
    Sample,
    fitted,
    line_through,
)
from edgebuild.vocabulary.artifact import KernelWork
from edgebuild.vocabulary.calibration import TICK, Load, NetworkSample, ProbedRuntime
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.units import Bytes, Seconds

# Refits with less weight on networks that are further off than this share.
ROUNDS, STICKS_OUT = 8, 0.05
# How alike the errors of a class are within one network, and what no class explains.
IN_COMMON = 0.3
UNEXPLAINED = 0.04
# A network that touches so many bytes finds none of its weights in the caches any more; which of
# them it is on a device, its own timings tell. No network of the probe touches more.
SIZES = (1e6, 2e6, 4e6, 8e6, 12e6, 16e6, 24e6, 32e6, 48e6, 64e6)
# Networks that take less than this tell what calls take rather than caches.
CLEAR = Seconds(100e-6)
# An interval holds nine of ten truths with a margin: so many standard deviations.
WIDE = 2.0
# A class that was never probed may be off by a factor of e.
UNKNOWN = 1.0
# An integer kernel that is so much slower than the float one for the same shapes is told, where
# it is worth so much of the whole, and so many seconds.
SLOWER, WORTH, LONG = 1.3, 0.02, 1e-5


@dataclass(frozen=True)
class Prediction:
    """What a network takes, and between which bounds; what is to be said of it."""

    seconds: Seconds
    low: Seconds
    high: Seconds
    unknown: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()


@dataclass(frozen=True)
class Predictor:
    """What a runtime's kernels take on a device.

    Attributes:
        classes: the classes that were probed.
        anything: all of them as one, for a class that was not.
        caches: bytes that a network may touch before it finds none of them in the caches.
        usual: bytes that a usual network of the probe touches.
        handing: what it takes to hand over a tensor, in seconds.
        carrying: what it takes to copy a byte of it.
        unexplained: how far networks are from the sums of their kernels, as a share.
    """

    classes: Mapping[str, KernelClass]
    anything: KernelClass
    caches: float
    usual: float
    handing: float
    carrying: float
    unexplained: float

    def knows(self, kind: str) -> bool:
        return kind in self.classes

    def kernel(self, work: KernelWork, around: float | None = None) -> tuple[float, float]:
        """Its seconds, and the standard deviation of their logarithm.

        `around` are the bytes that its network touches.
        """
        missed = _missed(self.usual if around is None else around, self.caches)
        found = self.classes.get(work.kind)
        if found is None:
            return self.anything.seconds(work, missed), UNKNOWN
        return found.seconds(work, missed), found.error

    def call(self, load: Load) -> float:
        """What a call takes beside its kernels."""
        return self.handing * load.tensors + self.carrying * load.size

    def network(self, works: Sequence[KernelWork], load: Load) -> Prediction:
        """The sum of its kernels and of what a call takes besides."""
        around = _around(works)
        spent: dict[str, list[float]] = defaultdict(list)
        errors: dict[str, float] = {}
        for work in works:
            seconds, errors[work.kind] = self.kernel(work, around)
            spent[work.kind].append(seconds)
        kernels = sum(map(sum, spent.values()))
        total = kernels + self.call(load)
        variance = sum(
            errors[kind] ** 2
            * (IN_COMMON * sum(each) ** 2 + (1 - IN_COMMON) * sum(one**2 for one in each))
            for kind, each in spent.items()
        )
        error = WIDE * math.sqrt(variance / total**2 + self.unexplained**2)
        unknown = tuple(sorted(kind for kind in spent if kind not in self.classes))
        return Prediction(
            Seconds(total),
            Seconds(total * math.exp(-error)),
            Seconds(total * math.exp(error)),
            unknown,
            tuple(self._slow(works, around, total)),
        )

    def _slow(self, works: Sequence[KernelWork], around: float, total: float) -> list[str]:
        """Integer kernels that are slower than the float ones for the same shapes."""
        own: dict[str, float] = defaultdict(float)
        float_: dict[str, float] = defaultdict(float)
        for work in works:
            twin = _float_twin(work)
            if twin is not None and self.knows(work.kind) and self.knows(twin.kind):
                own[work.kind] += self.kernel(work, around)[0]
                float_[work.kind] += self.kernel(twin, around)[0]
        return sorted(
            f"{kind} ({seconds / float_[kind]:.1f} × float's time)"
            for kind, seconds in own.items()
            if seconds > SLOWER * float_[kind] and seconds > max(WORTH * total, LONG)
        )


def _float_twin(work: KernelWork) -> KernelWork | None:
    """The same in fp32; None of what is float, or converts."""
    if work.numerics != Precision.INT8_STATIC:
        return None
    return replace(
        work,
        numerics=str(Precision.FP32),
        weights=Bytes(4 * work.weights),
        read=Bytes(4 * work.read),
        written=Bytes(4 * work.written),
    )


@functools.lru_cache(maxsize=8)
def predictor(probed: ProbedRuntime) -> Predictor:
    """Fits every class of kernels that was probed, and what a call takes beside its kernels."""
    networks = probed.networks
    calls = _Calls.fit(networks)
    # Of sizes that fit alike the largest: it says least of what was not seen.
    caches = min(reversed(SIZES), key=lambda size: _misjudged(networks, calls, size))
    samples = _samples(networks, calls, caches)
    everything = line_through([one for each in samples.values() for one in each])
    draft = Predictor(
        {kind: fitted(each, everything) for kind, each in samples.items()},
        everything,
        caches,
        float(np.median([_around(_works(network)) for network in networks])),
        calls.handing,
        calls.carrying,
        UNEXPLAINED,
    )
    return replace(draft, unexplained=_unexplained(draft, networks))


def _samples(
    networks: Sequence[NetworkSample], calls: _Calls, caches: float
) -> dict[str, list[Sample]]:
    """Every kernel twice: with what its network leaves in the caches, and with nothing there."""
    found: dict[str, list[Sample]] = defaultdict(list)
    for network in networks:
        missed = _missed(_around(_works(network)), caches)
        for kernel in network.kernels:
            of_kind = found[kernel.work.kind]
            of_kind.append((kernel.work, missed, calls.own(kernel.hot)))
            if kernel.work.macs:
                of_kind.append((kernel.work, 1.0, calls.own(kernel.cold)))
    return found


def _misjudged(networks: Sequence[NetworkSample], calls: _Calls, caches: float) -> float:
    """How far the layers of each network are from the sum of their lines, over all networks.

    The sums, because kernels differ from their lines by their shapes, whatever the caches hold.
    """
    samples = _samples(networks, calls, caches)
    lines = {
        kind: line_through(each)
        for kind, each in samples.items()
        if each[0][0].macs and len(each) >= ENOUGH
    }
    far = 0.0
    for network in networks:
        missed = _missed(_around(_works(network)), caches)
        layers = [kernel for kernel in network.kernels if kernel.work.kind in lines]
        taken = sum(calls.own(kernel.hot) for kernel in layers)
        along = sum(lines[kernel.work.kind].seconds(kernel.work, missed) for kernel in layers)
        far += abs(math.log((taken + CLEAR) / (along + CLEAR)))
    return far


def _missed(around: float, caches: float) -> float:
    """Which share of its weights a network finds no more that touches so many bytes."""
    return min(around / caches, 1.0)


def _unexplained(draft: Predictor, networks: Sequence[NetworkSample]) -> float:
    """How far whole networks of the probe are from the sum of their kernels."""
    errors = [
        math.log(network.seconds / draft.network(_works(network), network.load).seconds)
        for network in networks
    ]
    # The median: one that something else has disturbed tells nothing of the others.
    return max(float(np.median(np.abs(errors))) / 0.6745, UNEXPLAINED)


def _around(works: Sequence[KernelWork]) -> float:
    """Bytes that a network touches: little of it is left in the caches from run to run."""
    return float(sum(work.weights + work.read + work.written for work in works))


def _works(network: NetworkSample) -> list[KernelWork]:
    return [kernel.work for kernel in network.kernels]


@dataclass(frozen=True)
class _Calls:
    """What lies between a profile and a call: the profile's own time, caches, copies, the call.

    `untold` is what a kernel takes besides that the clock hardly shows: those of less than a tick.
    """

    noting: float
    untold: float
    carrying: float
    handing: float

    @classmethod
    def fit(cls, networks: Sequence[NetworkSample]) -> _Calls:
        """The least squares of relative errors; nothing negative, and what sticks out counts less.

        A network that something else has disturbed would tell of that instead.
        """
        seconds = np.array([network.seconds for network in networks])
        hot = np.array([sum(k.hot for k in network.kernels) for network in networks])
        told = np.array(
            [sum(not _is_untold(k.hot) for k in network.kernels) for network in networks], float
        )
        untold = np.array(
            [sum(_is_untold(k.hot) for k in network.kernels) for network in networks], float
        )
        bytes_ = np.array([network.load.size for network in networks], float)
        tensors = np.array([network.load.tensors for network in networks], float)
        columns = np.stack([-told, untold, bytes_, tensors], 1)
        sizes = np.maximum(np.abs(columns).max(axis=0), 1e-30)
        weights = 1 / np.maximum(seconds, TICK)
        for _ in range(ROUNDS):
            found, _ = nnls(columns / sizes * weights[:, None], (seconds - hot) * weights)
            left = np.abs(hot + columns @ (found / sizes) - seconds) / seconds
            weights = np.minimum(1, STICKS_OUT / np.maximum(left, 1e-9)) / np.maximum(seconds, TICK)
        return cls(*(float(one) for one in found / sizes))

    def own(self, profiled: float) -> float:
        """What a kernel takes within a call that nobody profiles."""
        besides = self.untold if _is_untold(profiled) else -self.noting
        return max(profiled + besides, SHORTEST)


def _is_untold(profiled: float) -> bool:
    """Whether a kernel took less than the clock tells."""
    return profiled < TICK
