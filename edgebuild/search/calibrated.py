"""Predicts kernels and whole networks from what a probe has timed on the device."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls

from edgebuild.vocabulary.artifact import KernelWork
from edgebuild.vocabulary.calibration import TICK, Load, NetworkSample, ProbedRuntime
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.units import Bytes, Seconds

# What a kernel takes at least, though the clock shows nothing.
SHORTEST = 5e-8
# From so many samples on, what the line leaves over is learned from the shapes.
ENOUGH = 20
# Through fewer samples goes no line of their own.
SOME = 5
# The longest kernels matter, and what is learned from more of them takes longer to learn.
MOST = 120
# How far shapes tell of one another, in standard deviations of all, and what they do not explain.
LENGTHS, NOISES = (1.0, 2.0, 4.0, 8.0), (0.01, 0.05, 0.2, 1.0)
LEAST_ERROR = 0.02
# A factor of three beside the line is not a matter of shapes where nothing else is.
FAR = 1.1
# Refits with less weight on networks that are further off than this share.
ROUNDS, STICKS_OUT = 8, 0.05
# The same for kernels: some shapes run on kernels of their own.
ASTRAY = 0.2
# How alike the errors of a class are within one network, and what no class explains.
IN_COMMON = 0.3
UNEXPLAINED = 0.04
# A network that touches so many bytes finds none of its weights in the caches any more; which of
# them it is on a device, its own timings tell. No network of the probe touches more.
SIZES = (1e6, 2e6, 4e6, 8e6, 16e6, 32e6, 64e6)
# Sizes that fit so nearly as well as the best are told apart by noise alone: the largest of them
# says least of what was not seen.
AS_GOOD = 1.01
# An interval holds nine of ten truths with a margin: so many standard deviations.
WIDE = 2.0
# A class that was never probed, or hardly, may be off by a factor of e.
UNKNOWN, FEW = 1.0, 0.5
# An integer kernel that is so much slower than the float one for the same shapes is told, where
# it is worth so much of the whole, and so many seconds.
SLOWER, WORTH, LONG = 1.3, 0.02, 1e-5


# A kernel's work, the share of its weights that no cache holds, and what it took.
_Sample = tuple[KernelWork, float, float]


@dataclass(frozen=True)
class Prediction:
    """What a network takes, and between which bounds; what is to be said of it."""

    seconds: Seconds
    low: Seconds
    high: Seconds
    unknown: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Class:
    """One class of kernels: a line through its samples, and what the shapes add to it."""

    line: np.ndarray
    error: float
    count: int
    process: _Process | None = None

    def seconds(self, work: KernelWork, missed: float) -> float:
        base = float(_terms(work, missed) @ self.line)
        if self.process is None:
            return max(base, SHORTEST)
        more = self.process.at(_features(work))
        return max((base + TICK) * math.exp(more) - TICK, SHORTEST)


@dataclass(frozen=True)
class _Process:
    """A Gaussian process with a mean of zero: far from what was seen it says nothing.

    Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), algorithm 2.1.
    """

    seen: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    length: float
    weights: np.ndarray

    def at(self, features: np.ndarray) -> float:
        scaled = (features - self.mean) / self.spread
        return float(_alike(scaled[None], self.seen, self.length)[0] @ self.weights)


def _alike(these: np.ndarray, those: np.ndarray, length: float) -> np.ndarray:
    """How much two kernels' residuals have in common, by the distance of their shapes."""
    squares = ((these[:, None] - those[None]) ** 2).sum(axis=2)
    found: np.ndarray = np.exp(-squares / (2 * length**2))
    return found


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

    classes: Mapping[str, _Class]
    anything: _Class
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
    bends = {size: _bend(_samples(networks, calls, size)) for size in SIZES}
    caches = max(size for size, bend in bends.items() if bend <= AS_GOOD * min(bends.values()))
    samples = _samples(networks, calls, caches)
    everything = _line([one for each in samples.values() for one in each])
    draft = Predictor(
        {kind: _fitted(each, everything) for kind, each in samples.items()},
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
) -> dict[str, list[_Sample]]:
    """Every kernel twice: with what its network leaves in the caches, and with nothing there."""
    found: dict[str, list[_Sample]] = defaultdict(list)
    for network in networks:
        missed = _missed(_around(_works(network)), caches)
        for kernel in network.kernels:
            of_kind = found[kernel.work.kind]
            of_kind.append((kernel.work, missed, calls.own(kernel.hot)))
            if kernel.work.macs:
                of_kind.append((kernel.work, 1.0, calls.own(kernel.cold)))
    return found


def _bend(samples: Mapping[str, Sequence[_Sample]]) -> float:
    """How far layers are from their lines, each class by its share of the time."""
    return sum(
        _line(each).error * sum(taken for _, _, taken in each)
        for each in samples.values()
        if each[0][0].macs and len(each) >= ENOUGH
    )


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
    return float(sum(work.weights + work.written for work in works))


def _works(network: NetworkSample) -> list[KernelWork]:
    return [kernel.work for kernel in network.kernels]


@dataclass(frozen=True)
class _Calls:
    """What lies between a profile and a call: the profile's own time, caches, copies, the call."""

    noting: float
    carrying: float
    handing: float

    @classmethod
    def fit(cls, networks: Sequence[NetworkSample]) -> _Calls:
        """The least squares of relative errors; nothing negative, and what sticks out counts less.

        A network that something else has disturbed would tell of that instead.
        """
        seconds = np.array([network.seconds for network in networks])
        hot = np.array([sum(k.hot for k in network.kernels) for network in networks])
        counts = np.array([len(network.kernels) for network in networks], float)
        bytes_ = np.array([network.load.size for network in networks], float)
        tensors = np.array([network.load.tensors for network in networks], float)
        columns = np.stack([-counts, bytes_, tensors], 1)
        sizes = np.maximum(np.abs(columns).max(axis=0), 1e-30)
        weights = 1 / np.maximum(seconds, TICK)
        for _ in range(ROUNDS):
            found, _ = nnls(columns / sizes * weights[:, None], (seconds - hot) * weights)
            left = np.abs(hot + columns @ (found / sizes) - seconds) / seconds
            weights = np.minimum(1, STICKS_OUT / np.maximum(left, 1e-9)) / np.maximum(seconds, TICK)
        noting, carrying, handing = found / sizes
        return cls(float(noting), float(carrying), float(handing))

    def own(self, profiled: float) -> float:
        """What a kernel takes within a call that nobody profiles."""
        return max(profiled - self.noting, SHORTEST)


def _terms(work: KernelWork, missed: float) -> np.ndarray:
    """1, missed, multiply-accumulates, bytes of weights, those missed, and of activations.

    What no cache holds costs by the byte, and once: code is read, and the first of what is read
    ahead waited for. Constants of what is no layer are read as activations are.
    """
    carried = work.read + work.written
    if work.macs == 0:
        return np.array([1.0, 0.0, 0.0, 0.0, 0.0, work.weights + carried])
    missing = missed * work.weights
    return np.array([1.0, missed, work.macs, work.weights, missing, carried])


def _features(work: KernelWork) -> np.ndarray:
    """What a kernel's speed may depend on besides: its sizes, and how vectors fit its widths."""
    widths = max(work.inputs, 1), max(work.outputs, 1)
    places = max(work.written / widths[1], 1.0)
    each = max(work.macs / (places * widths[1]), 1.0)
    sizes = (*widths, places, each, work.macs, work.weights, work.read, work.written)
    vectors = [math.log(-(-width // 16) * 16 / width) for width in widths]
    return np.array([*np.log1p(np.array(sizes, float)), *vectors])


def _line(samples: Sequence[_Sample]) -> _Class:
    """The sum of `_terms`, each times a factor, by least relative squares.

    Nothing is negative, and what lies astray counts less.
    """
    terms = np.array([_terms(work, missed) for work, missed, _ in samples])
    seconds = np.array([taken for _, _, taken in samples])
    sizes = np.maximum(terms.max(axis=0), 1e-30)
    # Each kernel counts by the larger of what it took and what is expected: by what it took alone,
    # one that was taken for another, and took next to nothing, would bend the line to nothing.
    work = np.maximum(terms[:, 2] if terms[:, 2].any() else terms[:, -1], 1.0)
    expected = work * float(np.median(seconds / work))
    for _ in range(ROUNDS):
        astray = np.abs(np.log((seconds + TICK) / (expected + TICK)))
        weights = np.minimum(1, ASTRAY / np.maximum(astray, 1e-9))
        weights /= np.maximum(np.maximum(seconds, expected), TICK)
        found, _ = nnls(terms / sizes * weights[:, None], seconds * weights)
        line = found / sizes
        expected = terms @ line
    ratios = np.log((seconds + TICK) / (terms @ line + TICK))
    # Of few samples the line goes through most, and says nothing of how far it is off.
    few = FEW / math.sqrt(len(samples))
    error = max(float(np.sqrt(np.mean(ratios**2))), few)
    return _Class(line, error, len(samples))


def _fitted(samples: Sequence[_Sample], everything: _Class) -> _Class:
    """A line; and where there are enough samples, a Gaussian process of what it leaves over."""
    if len(samples) < SOME:
        return _scaled(everything, samples)
    line = _line(samples)
    told = _telling(_plausible(_beside(samples, line)))
    if len(told) < ENOUGH:
        return line
    residuals = np.array([beside for _, beside, _ in told])
    features = np.array([_features(work) for work, _, _ in told])
    mean, spread = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-3)
    seen = (features - mean) / spread
    tried = [
        (*_left_out(seen, residuals, length, noise), length)
        for length in LENGTHS
        for noise in NOISES
    ]
    error, weights, length = min(tried, key=lambda one: one[0])
    without = float(np.sqrt(np.mean(residuals**2)))
    if error >= without:
        return replace(line, error=max(without, LEAST_ERROR))
    process = _Process(seen, mean, spread, length, weights)
    return replace(line, error=max(error, LEAST_ERROR), process=process)


def _scaled(everything: _Class, samples: Sequence[_Sample]) -> _Class:
    """The line of all kernels, as steep as the few samples of a class have it."""
    along = [float(_terms(work, missed) @ everything.line) for work, missed, _ in samples]
    ratios = [
        taken / max(base, SHORTEST) for base, (_, _, taken) in zip(along, samples, strict=True)
    ]
    line = everything.line * float(np.median(ratios))
    return _Class(line, FEW / math.sqrt(len(samples)), len(samples))


def _beside(samples: Sequence[_Sample], line: _Class) -> list[_Sample]:
    """Each kernel once, with how far it lies beside the line, hot and cold on average."""
    along = np.array([_terms(work, missed) for work, missed, _ in samples]) @ line.line
    seconds = np.array([taken for _, _, taken in samples])
    residuals = np.log((seconds + TICK) / (along + TICK))
    times = 2 if samples[0][0].macs else 1
    means = residuals.reshape(-1, times).mean(axis=1)
    return [
        (work, float(mean), taken)
        for (work, _, taken), mean in zip(samples[::times], means, strict=True)
    ]


def _plausible(beside: Sequence[_Sample]) -> list[_Sample]:
    """Those that lie near the line, as most do.

    A runtime may run independent operators of one class in another order than the file has them,
    and says not in which: two that were taken for each other tell nothing.
    """
    far = [abs(one[1]) for one in beside]
    limit = max(FAR, 4 * float(np.median(far)))
    return [one for one in beside if abs(one[1]) <= limit]


def _telling(beside: Sequence[_Sample]) -> list[_Sample]:
    """The longest kernels, and of the others some from the longest to the shortest."""
    ordered = sorted(beside, key=lambda one: -one[2])
    longest, others = ordered[:MOST], ordered[MOST:]
    step = max(len(others) // (MOST // 3), 1)
    return [*longest, *others[::step]]


def _left_out(
    seen: np.ndarray, residuals: np.ndarray, length: float, noise: float
) -> tuple[float, np.ndarray]:
    """How far each sample is from what all others tell of it (ibid., 5.12), and the weights."""
    inverse = np.linalg.inv(_alike(seen, seen, length) + noise * np.eye(len(seen)))
    weights: np.ndarray = inverse @ residuals
    return float(np.sqrt(np.mean((weights / np.diag(inverse)) ** 2))), weights
