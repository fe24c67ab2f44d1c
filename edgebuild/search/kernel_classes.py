"""What the kernels of one class take: a line through samples, and what their shapes add to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import least_squares, nnls

from edgebuild.vocabulary.artifact import KernelWork
from edgebuild.vocabulary.calibration import TICK

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
# Errors within this factor are alike.
ALIKE = 1.03
# A factor of three beside the line is not a matter of shapes where nothing else is.
FAR = 1.1
# Kernels that are further off than this, in the logarithm, count for less than their square.
ASTRAY = 0.3
# What a kernel counts for at least that took no time by the clock.
LEAST_WEIGHT = 0.05
# A class that was hardly probed may be off by so much, in the logarithm.
FEW = 0.5

# A kernel's work, the share of its weights that no cache holds, and what it took.
Sample = tuple[KernelWork, float, float]


@dataclass(frozen=True)
class KernelClass:
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


def line_through(samples: Sequence[Sample]) -> KernelClass:
    """The sum of `_terms`, each times a factor that is not negative.

    By the least squares of logarithms, twice too slow as bad as twice too fast, with a loss that
    grows slowly for what lies astray (soft l1, as in scipy.optimize.least_squares): some shapes run
    on kernels of their own.
    """
    terms = np.array([_terms(work, missed) for work, missed, _ in samples])
    seconds = np.array([taken for _, _, taken in samples])
    told = np.log(seconds + TICK)
    # Of what takes less than two ticks the clock says little: hundreds of kernels that read as
    # nothing would bend the line down where others are long enough to be told.
    weights = np.clip(seconds / (2 * TICK), LEAST_WEIGHT, 1.0)
    sizes = np.maximum(terms.max(axis=0), 1e-30)
    present = terms.max(axis=0) > 0
    shares = (terms / sizes)[:, present]
    relative = 1 / np.maximum(seconds, TICK)
    begun, _ = nnls(shares * relative[:, None], seconds * relative)
    found = least_squares(
        lambda factors: weights * (np.log(shares @ factors + TICK) - told),
        np.maximum(begun, TICK / 1000),
        lambda factors: shares * (weights / (shares @ factors + TICK))[:, None],
        bounds=(0, np.inf),
        loss="soft_l1",
        f_scale=ASTRAY,
        x_scale=np.maximum(begun, float(seconds.mean()) / 100),
    )
    line = np.zeros(len(sizes))
    line[present] = found.x / sizes[present]
    ratios = told - np.log(terms @ line + TICK)
    # Of few samples the line goes through most, and says nothing of how far it is off.
    few = FEW / math.sqrt(len(samples))
    error = max(float(np.sqrt(np.mean(ratios**2))), few)
    return KernelClass(line, error, len(samples))


def fitted(samples: Sequence[Sample], everything: KernelClass) -> KernelClass:
    """A line; and where there are enough samples, a Gaussian process of what it leaves over."""
    if len(samples) < SOME:
        return _scaled(everything, samples)
    line = line_through(samples)
    told = _telling(_plausible(_beside(samples, line)))
    if len(told) < ENOUGH:
        return line
    residuals = np.array([beside for _, beside, _ in told])
    features = np.array([_features(work) for work, _, _ in told])
    mean, spread = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-3)
    seen = (features - mean) / spread
    tried = [
        (length, noise, *_left_out(seen, residuals, length, noise))
        for length in LENGTHS
        for noise in NOISES
    ]
    # Of those that err alike the smoothest: which errs least is chance then.
    least = min(error for *_, error, _ in tried)
    alike = [one for one in tried if one[2] <= ALIKE * least]
    length, _, error, weights = max(alike, key=lambda one: one[:2])
    without = float(np.sqrt(np.mean(residuals**2)))
    if error >= without:
        return replace(line, error=max(without, LEAST_ERROR))
    process = _Process(seen, mean, spread, length, weights)
    return replace(line, error=max(error, LEAST_ERROR), process=process)


def _scaled(everything: KernelClass, samples: Sequence[Sample]) -> KernelClass:
    """The line of all kernels, as steep as the few samples of a class have it."""
    along = [float(_terms(work, missed) @ everything.line) for work, missed, _ in samples]
    ratios = [
        taken / max(base, SHORTEST) for base, (_, _, taken) in zip(along, samples, strict=True)
    ]
    line = everything.line * float(np.median(ratios))
    return KernelClass(line, FEW / math.sqrt(len(samples)), len(samples))


def _beside(samples: Sequence[Sample], line: KernelClass) -> list[Sample]:
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


def _plausible(beside: Sequence[Sample]) -> list[Sample]:
    """Those that lie near the line, as most do.

    A runtime may run independent operators of one class in another order than the file has them,
    and says not in which: two that were taken for each other tell nothing.
    """
    far = [abs(one[1]) for one in beside]
    limit = max(FAR, 4 * float(np.median(far)))
    return [one for one in beside if abs(one[1]) <= limit]


def _telling(beside: Sequence[Sample]) -> list[Sample]:
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
