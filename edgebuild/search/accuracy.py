"""How much score an artifact loses, and how much it may lose on other samples of the kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgebuild.samples import StoredSamples
from edgebuild.search.case import Case, at
from edgebuild.vocabulary.errors import InvalidWorkload
from edgebuild.vocabulary.measurement import Evidence, Figure
from edgebuild.vocabulary.program import Program
from edgebuild.vocabulary.workload import whole_drop

# Neighbors in a split are often alike (frames of one video), so whole blocks are left out.
BLOCKS = 10
CONFIDENCE = 0.95
# So many samples may be lost at most, with that confidence, where none of many was.
UNSEEN = 3.0
# Outputs are the same network's if they differ by no more than this share of the largest one.
ROUNDINGS = 1e-3
# Whose score is less than this share of the network's own is of no use to anybody, and so many
# samples tell. Artifacts are compared with their networks on as many.
LEAST_KEPT, GLANCED = 0.5, 64


@dataclass(frozen=True)
class Accuracy:
    """A score, what it lacks of the network's own, and what it lacks at most, at 95 % confidence.

    What is lost is in the points of a score from 0 to 1, and of any other a share of its size.
    `most_lost` is None where the score can only be taken of a whole split; `is_bounded` is false
    of a single sample, which says nothing of others.
    """

    score: float
    lost: float
    most_lost: float | None = None
    is_bounded: bool = True


def accuracy_of(case: Case, outputs: list[np.ndarray], samples: StoredSamples) -> Accuracy:
    """Compares an artifact's outputs over a split with the network's own.

    The bound is from the jackknife over blocks of neighboring samples (Kunsch, "The jackknife and
    the bootstrap for general stationary observations", 1989), both scores on the same samples. Of
    scores from 0 to 1 no fewer doubts are left than by the rule of three: that none of 20 samples
    was lost does not say that none in a hundred will be.

    Raises:
        InvalidWorkload: the score function fails, or gives no number.
    """
    reference = case.reference(samples)

    def scores(rows: np.ndarray | None = None) -> tuple[float, float]:
        return case.own_score(samples, rows), case.score(at(rows, outputs), samples, rows)

    own, score = scores()
    lost = _lost(own, score)
    blocks = min(BLOCKS, len(samples))
    if blocks < 2:
        return Accuracy(score, lost, is_bounded=False)
    if any(len(output) != len(samples) for output in outputs):
        return Accuracy(score, lost)
    try:
        parts = np.array([_lost(*scores(rows)) for rows in _all_but_a_block(len(samples), blocks)])
    except InvalidWorkload:
        return Accuracy(score, lost)
    # Imported here: scipy.stats takes a second.
    from scipy.stats import t

    error = np.sqrt((blocks - 1) / blocks * np.square(parts - parts.mean()).sum())
    wide = float(t.ppf(CONFIDENCE, blocks - 1))
    if 0 <= own <= 1 and not _answer_alike(reference, outputs):
        error = np.hypot(error, UNSEEN / wide / len(samples))
    return Accuracy(score, lost, lost + wide * float(error))


def ruin(case: Case, program: Program) -> Figure | None:
    """What a changed network has lost of its score, in PyTorch, where that is more than half.

    None where it has not, or where that cannot be told: the score is of a whole split only, or does
    not count from zero.
    """
    samples = case.validation
    numbers = np.array(samples.numbers(GLANCED))
    outputs = case.reference(samples, program, GLANCED)
    try:
        own, score = case.own_score(samples, numbers), case.score(outputs, samples, numbers)
    except InvalidWorkload:
        return None
    if own <= 0 or score >= LEAST_KEPT * own:
        return None
    where = f"PyTorch, before any export, on {len(numbers)} validation samples"
    return Figure(_lost(own, score), Evidence.MEASURED, where)


def _lost(own: float, score: float) -> float:
    return (own - score) / whole_drop(own)


def _answer_alike(reference: list[np.ndarray], outputs: list[np.ndarray]) -> bool:
    """Whether they differ by roundings alone, which hardly ever decide anything."""
    pairs = zip(reference, outputs, strict=True)
    return all(
        np.abs(np.subtract(a, b, dtype=float)).max(initial=0)
        <= ROUNDINGS * np.abs(a).max(initial=0)
        for a, b in pairs
    )


def _all_but_a_block(count: int, blocks: int) -> Iterator[np.ndarray]:
    rows = np.arange(count)
    for block in np.array_split(rows, blocks):
        yield np.setdiff1d(rows, block, assume_unique=True)
