"""The grids that exporters round weights to, and the scales that put weights on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from edgebuild.vocabulary.precision import (
    EIGHT_BIT_STEPS,
    FOUR_BIT_BLOCK,
    FOUR_BIT_STEPS,
    LayerKind,
)

TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Steps:
    """A grid for one layer's weights: the numbers `scale` × (`low` … `high`).

    `scale` has the shape of the weights as rows, or one column for a whole row. Exporters find it
    again from the weights, if the largest of every row or block lies on the last step; `block` is
    how many weights of a row share it, 0 for all.
    """

    scale: Tensor
    low: int
    high: int
    block: int = 0

    def nearest(self, rows: Tensor) -> Tensor:
        """The nearest step of every weight, as whole numbers."""
        return (rows / self.scale).round().clamp(self.low, self.high)

    def is_last(self, rows: Tensor) -> Tensor:
        """Which weights must lie on the last step, for the scale to be found again from them."""
        nearest = self.nearest(rows)
        return (nearest == self.low) | ((nearest == self.high) & (self.high == -self.low))

    def stretched(self, ratio: Tensor) -> Steps:
        """The same steps, wider or narrower by a ratio that has the form of the scale."""
        return Steps(self.scale * ratio, self.low, self.high, self.block)


@dataclass(frozen=True)
class Grid:
    """How many bits exporters give the weights of convolutions and of linear layers.

    `block` is how many inputs of a linear layer share a scale, 0 for all inputs of an output.
    """

    convolution: int = 8
    linear: int = 8
    block: int = 0

    def steps(self, kind: LayerKind, rows: Tensor) -> Steps:
        """The grid on which the exporters' nearest rounding puts weights, given as rows."""
        bits = {
            LayerKind.CONVOLUTION: self.convolution,
            LayerKind.DEPTHWISE: self.convolution,
            LayerKind.LINEAR: self.linear,
        }.get(kind, 8)
        if bits == 4 and kind is LayerKind.LINEAR and self.block:
            return _blockwise(rows, self.block)
        last = EIGHT_BIT_STEPS if bits == 8 else FOUR_BIT_STEPS
        largest = rows.abs().amax(dim=-1, keepdim=True)
        return Steps((largest / last).clamp_min(TINY), -last, last)


def _blockwise(rows: Tensor, block: int) -> Steps:
    """MatMulNBits' symmetric grid: the largest of a block is -8 steps of a scale that has its sign.

    The step 8 is missing, so that a weight of the other sign reaches 7/8 of the largest at most.
    """
    blocks = in_blocks(rows, block)
    low, high = blocks.amin(dim=-1, keepdim=True), blocks.amax(dim=-1, keepdim=True)
    largest = torch.where(high > -low, high, low)
    scale = torch.where(largest == 0, TINY, largest / -8)
    return Steps(scale.expand_as(blocks).flatten(-2)[..., : rows.shape[-1]], -8, 7, block)


def in_blocks(rows: Tensor, block: int) -> Tensor:
    """The rows with the last dimension cut into blocks, the last one filled up with zeros."""
    missing = -rows.shape[-1] % block
    return functional.pad(rows, (0, missing)).reshape(*rows.shape[:-1], -1, block)


# onnxruntime has blocks of four-bit weights in linear layers, and stores those of convolutions by
# channel; LiteRT has four-bit linear layers alone, by channel.
GRIDS: Mapping[str, Grid] = {
    "int8": Grid(),
    "int4": Grid(convolution=4, linear=4, block=FOUR_BIT_BLOCK),
    "int4-convolutions": Grid(convolution=4),
    "int4-linear": Grid(linear=4),
    "int4-linear-blocks": Grid(linear=4, block=FOUR_BIT_BLOCK),
}
