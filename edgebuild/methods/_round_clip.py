"""Finds how far to clip weights so that rounding them loses least."""

from __future__ import annotations

import torch
from torch import Tensor

from edgebuild.methods._round_grid import Steps, in_blocks

# The shares of the largest weight that are tried.
SHARES = torch.linspace(1.0, 0.4, 25)


def clipped(rows: Tensor, steps: Steps) -> Steps:
    """The steps with the scales at which the rounded weights differ least from the rows.

    The mean squared error of each row, or block of a row, decides (as in Banner et al., arXiv
    1810.05723, by trial instead of by an assumed distribution). The weights beyond become the last
    step, so that exporters find the same scales again.
    """
    best = torch.ones_like(steps.scale)
    least = torch.full_like(steps.scale, torch.inf)
    for share in SHARES:
        tried = steps.stretched(share)
        error = _error(rows, tried)
        best = torch.where(error < least, share, best)
        least = torch.minimum(error, least)
    return steps.stretched(best)


def _error(rows: Tensor, steps: Steps) -> Tensor:
    """The squared error of each row or block, in the form of the scale."""
    squares = (steps.nearest(rows) * steps.scale - rows).square()
    if not steps.block:
        return squares.sum(dim=-1, keepdim=True)
    blocks = in_blocks(squares, steps.block)
    summed = blocks.sum(dim=-1, keepdim=True).expand_as(blocks)
    return summed.flatten(-2)[..., : rows.shape[-1]]
