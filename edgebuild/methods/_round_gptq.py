"""Rounds weight after weight, and lets those that follow make up for each one's error."""

from __future__ import annotations

import torch
from torch import Tensor

from edgebuild.methods._round_grid import Steps
from edgebuild.methods._round_seen import Seen

# Columns whose errors are passed on to all that follow at once; it changes speed alone.
BATCH = 128


def gptq(rows: Tensor, steps: Steps, seen: Seen) -> Tensor:
    """The chosen step of every weight, as whole numbers, in the shape of the rows.

    Frantar et al., "GPTQ" (arXiv 2210.17323), algorithm 1, with the largest inputs first and the
    scales of blocks fixed before, as its authors' later code has it.
    """
    order = seen.squares.diagonal(dim1=-2, dim2=-1).argsort(dim=-1, descending=True)
    places = order[:, None, :].expand_as(rows)
    scale = steps.scale.expand_as(rows).gather(2, places)
    nearest = steps.nearest(rows).gather(2, places)
    fixed = steps.is_last(rows).gather(2, places)
    left = rows.gather(2, places)
    factor = _factor(seen.squares, order)
    chosen = torch.empty_like(left)
    for start in range(0, rows.shape[2], BATCH):
        end = min(start + BATCH, rows.shape[2])
        errors = torch.empty_like(left[..., start:end])
        for column in range(start, end):
            found = (left[..., column] / scale[..., column]).round().clamp(steps.low, steps.high)
            found = torch.where(fixed[..., column], nearest[..., column], found)
            chosen[..., column] = found
            lacking = left[..., column] - found * scale[..., column]
            errors[..., column - start] = lacking / factor[:, column, column, None]
            later = factor[:, None, column, column:end]
            left[..., column:end] -= errors[..., column - start, None] * later
        left[..., end:] -= errors @ factor[:, start:end, end:]
    return torch.empty_like(chosen).scatter(2, places, chosen)


def _factor(squares: Tensor, order: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse, with rows and columns in the given order."""
    taken = squares.gather(1, order[:, :, None].expand_as(squares))
    taken = taken.gather(2, order[:, None, :].expand_as(squares)).double()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(taken))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor.to(squares.dtype)
