"""Narrows the ranges of activations to where rounding to eight bits loses least."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

BINS = 2048
STEPS = 255
# How many ends are tried on either side of zero.
TRIED = 128

# A tensor's smallest and largest value.
Range = tuple[float, float]


def narrowed(
    ranges: Mapping[str, Range], seen: Iterable[tuple[str, np.ndarray]]
) -> dict[str, Range]:
    """The range of every tensor at which its rounded values have the least mean squared error.

    Beyond a range, values are cut off to its end: rare large ones are given up for finer steps
    (as in Banner et al., arXiv 1810.05723, from a histogram instead of an assumed distribution).

    Args:
        ranges: from the smallest to the largest value of each tensor, by its name.
        seen: each tensor's name and values, sample after sample.
    """
    counts = {name: np.zeros(BINS) for name in ranges}
    for name, values in seen:
        if name in ranges:
            counts[name] += _histogram(values, *ranges[name])
    return {name: _best(*ranges[name], counts[name]) for name in ranges}


def _histogram(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """How many values lie in each bin, but for zeros, which any range rounds to themselves."""
    given = values[values != 0]
    width = max((high - low) / BINS, float(np.finfo(np.float32).tiny))
    places = (given - low) / width
    return np.bincount(np.clip(places, 0, BINS - 1).astype(np.int32), minlength=BINS)


def _best(low: float, high: float, counts: np.ndarray) -> Range:
    """The ends that lose least, of all pairs that are tried; every range holds zero."""
    values = low + (np.arange(BINS) + 0.5) * (high - low) / BINS
    shares = np.linspace(0, 1, TRIED + 1)
    lows, highs = np.unique(min(low, 0.0) * shares), np.unique(max(high, 0.0) * shares)
    cut = np.array([_cut(end - values, counts) for end in lows])[:, None] + np.array(
        [_cut(values - end, counts) for end in highs]
    )
    below = np.cumsum(counts)
    kept = np.interp(highs, values, below) - np.interp(lows, values, below)[:, None]
    step = (highs - lows[:, None]) / STEPS
    first, last = np.unravel_index((cut + kept * step**2 / 12).argmin(), cut.shape)
    return float(lows[first]), float(highs[last])


def _cut(beyond: np.ndarray, counts: np.ndarray) -> float:
    """The squared error of what is cut off, given how far beyond the end each bin lies."""
    return float((np.maximum(beyond, 0) ** 2 * counts).sum())
