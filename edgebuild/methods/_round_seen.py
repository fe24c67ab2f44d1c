"""What a layer has seen of the calibration samples, as products of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgebuild.methods._round_layers import Layer

# What is added to the diagonal, as a share of its mean: directions that no sample shows must not
# be free.
DAMPING = 0.01
# So many positions tell the products of a convolution's inputs well enough, or these many for each
# of them.
POSITIONS = 8192
POSITIONS_OF_AN_INPUT = 8


@dataclass(frozen=True)
class Seen:
    """Mean products of a layer's inputs, (groups, inputs of a group × kernel, the same).

    Attributes:
        squares: of the inputs behind rounded layers with themselves.
        crosses: of the inputs behind rounded layers with the exact ones.
        power: the mean square of the exact outputs, summed over outputs.
    """

    squares: Tensor
    crosses: Tensor
    power: Tensor

    def loss(self, exact: Tensor, rounded: Tensor) -> Tensor:
        """The mean squared difference of the outputs that rows have before and after rounding."""
        halfway = rounded @ self.squares - 2 * exact @ self.crosses.mT
        return (halfway * rounded).sum() + self.power

    def slope(self, exact: Tensor, rounded: Tensor) -> Tensor:
        """The slope of the loss by every rounded weight."""
        return 2 * (rounded @ self.squares - exact @ self.crosses.mT)


def seen_by(
    layer: Layer, exact: Sequence[Tensor], rounded: Sequence[Tensor], centered: bool
) -> Seen:
    """The products over all samples; of deviations from the mean, if that is corrected later."""
    weights = layer.rows()
    wanted, given = (_columns(layer, values) for values in (exact, rounded))
    if centered:
        wanted = wanted - wanted.mean(dim=-1, keepdim=True)
        given = given - given.mean(dim=-1, keepdim=True)
    count = given.shape[-1]
    squares, crosses = given @ given.mT / count, given @ wanted.mT / count
    power = (weights @ wanted).square().sum() / count
    share = DAMPING * squares.diagonal(dim1=-2, dim2=-1).mean(dim=-1)
    # A layer that sees nothing but zeros is rounded to the nearest.
    share = torch.where(share > 0, share, 1.0)[:, None, None]
    damping = share * torch.eye(squares.shape[-1])
    return Seen(squares + damping, crosses + damping, power + (weights.square() * share).sum())


def _columns(layer: Layer, values: Sequence[Tensor]) -> Tensor:
    """What the weights are multiplied with, at as many positions as are needed."""
    first = layer.columns(values[0])
    needed = max(POSITIONS, POSITIONS_OF_AN_INPUT * first.shape[1])
    every = max(1, first.shape[-1] * len(values) // needed)
    return torch.cat([layer.columns(value)[..., ::every] for value in values], dim=-1)
