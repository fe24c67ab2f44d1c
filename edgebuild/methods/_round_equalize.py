"""Equalizes the ranges of a layer's output channels with those of the layer that reads them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from edgebuild.methods._round_layers import Layer, layers_of
from edgebuild.methods._round_scaling import (
    Reader,
    output_ranges,
    readers_of,
    scale_outputs,
)
from edgebuild.vocabulary.program import Program

# Chains of layers settle in a few passes.
PASSES = 20
SETTLED = 1e-3


def equalize(program: Program) -> None:
    """Rescales every pair of layers in place; the network computes what it did before.

    Cross-layer equalization of Nagel et al., "Data-Free Quantization Through Weight Equalization
    and Bias Correction" (arXiv 1906.04721), section 4.1: a channel whose weights span r1 in the
    first layer and r2 in the second is divided by sqrt(r1 / r2) in the first and multiplied in the
    second.
    """
    pairs = list(equalizable(program))
    for _ in range(PASSES):
        if max((_equalize(first, second) for first, second in pairs), default=0.0) < SETTLED:
            break


def equalizable(program: Program) -> Iterator[tuple[Layer, Reader]]:
    """Layers and the one layer that reads each, with only what passes a factor between them."""
    layers = layers_of(program)
    for first in layers.values():
        if first.is_alone:
            axis = first.channel_axis(first.node.meta["val"].ndim)
            found = readers_of(first.node, axis, layers)
            if len(found) == 1:
                yield first, found[0]


def _equalize(first: Layer, second: Reader) -> float:
    """Equalizes one pair; returns the largest logarithm of a factor."""
    ranges = output_ranges(first), second.ranges()
    factors = torch.sqrt(ranges[0] / ranges[1])
    # A channel that is zero on either side has nothing to equalize.
    factors = torch.where(torch.isfinite(factors) & (factors > 0), factors, 1.0)
    scale_outputs(first, 1 / factors)
    second.scale(factors)
    return float(factors.log().abs().max())
