"""How much score an artifact loses, and how much it may lose on other samples of the kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgebuild.samples import StoredSamples
from edgebuild.search.case import Case
from edgebuild.vocabulary.errors import InvalidWorkload

# Neighbors in a split are often alike (frames of one video), so whole blocks are left out.
BLOCKS = 10
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Accuracy:
    """A score, what it lacks of the network's own, and what it lacks at most, at 95 % confidence.

    What is lost is a share of the network's score, and of one below 1 in the score's own points.
    `most_lost` is None where the score can only be taken of a whole split.
    """

    score: float
    lost: float
    most_lost: float | None = None


def accuracy_of(case: Case, outputs: list[np.ndarray], samples: StoredSamples) -> Accuracy:
    """Compares an artifact's outputs over a split with the network's own.

    The bound is from the jackknife over blocks of neighboring samples (Kunsch, "The jackknife and
    the bootstrap for general stationary observations", 1989), both scores on the same samples.

    Raises:
        InvalidWorkload: the score function fails, or gives no number.
    """
    reference = case.reference(samples)

    def scores(rows: np.ndarray | None = None) -> tuple[float, float]:
        own, other = (case.score(each, samples, rows) for each in (reference, outputs))
        return other, (own - other) / max(abs(own), 1.0)

    score, lost = scores()
    blocks = min(BLOCKS, len(samples))
    if blocks < 2 or any(len(output) != len(samples) for output in outputs):
        return Accuracy(score, lost)
    try:
        parts = np.array([scores(rows)[1] for rows in _all_but_a_block(len(samples), blocks)])
    except InvalidWorkload:
        return Accuracy(score, lost)
    # Imported here: scipy.stats takes a second.
    from scipy.stats import t

    error = np.sqrt((blocks - 1) / blocks * np.square(parts - parts.mean()).sum())
    return Accuracy(score, lost, lost + float(t.ppf(CONFIDENCE, blocks - 1) * error))


def _all_but_a_block(count: int, blocks: int) -> Iterator[np.ndarray]:
    rows = np.arange(count)
    for block in np.array_split(rows, blocks):
        yield np.setdiff1d(rows, block, assume_unique=True)
