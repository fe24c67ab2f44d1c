"""Rounds each weight up or down, whichever keeps the layer's outputs on calibration samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgebuild.methods._round_grid import Steps
from edgebuild.methods._round_seen import Seen

# The paper's: the ends of the rectified sigmoid, the exponents that the regularizer goes through,
# and the share of the iterations in which nothing is pushed to either side.
LOW, HIGH = -0.1, 1.1
FIRST_EXPONENT, LAST_EXPONENT = 20.0, 2.0
WARM = 0.2
# For a few hundred iterations instead of the paper's ten thousand, found on small networks.
LEARNING_RATE = 0.1
REGULARIZATION = 0.03


def adaround(rows: Tensor, steps: Steps, seen: Seen, iterations: int) -> Tensor:
    """The chosen step of every weight, as whole numbers, in the shape of the rows.

    Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (arXiv
    2004.10568), equations 21 to 25, with the error of the layer's outputs before its activation
    function. That error is a quadratic form of the weights, so that every iteration sees all
    samples through the products of their inputs.
    """
    nearest = steps.nearest(rows)
    exact = rows / steps.scale
    free = ~steps.is_last(rows) & (exact < steps.high)
    floor = exact.floor()
    share = (exact - floor).clamp(1e-4, 1 - 1e-4)
    # Where the rectified sigmoid leaves every weight as it is.
    hidden = torch.logit((share - LOW) / (HIGH - LOW))
    optimizer = torch.optim.Adam([hidden], lr=LEARNING_RATE)
    unit = seen.loss(rows, nearest * steps.scale).clamp_min(1e-12)
    for number in range(iterations):
        sigmoid = torch.sigmoid(hidden)
        up = (sigmoid * (HIGH - LOW) + LOW).clamp(0, 1)
        chosen = torch.where(free, floor + up, nearest)
        slope = seen.slope(rows, chosen * steps.scale) * steps.scale / unit
        slope += _regularization(up, (number / iterations - WARM) / (1 - WARM))
        inside = free & (up > 0) & (up < 1)
        hidden.grad = slope * (HIGH - LOW) * sigmoid * (1 - sigmoid) * inside
        optimizer.step()
    return torch.where(free, floor + (torch.sigmoid(hidden) >= 0.5), nearest)


def _regularization(up: Tensor, progress: float) -> Tensor | float:
    """The slope of what pushes every weight to a side, harder as the exponent falls."""
    if progress <= 0:
        return 0.0
    fallen = 0.5 * (1 + math.cos(math.pi * progress))
    exponent = LAST_EXPONENT + (FIRST_EXPONENT - LAST_EXPONENT) * fallen
    decided = 2 * up - 1
    return -2 * REGULARIZATION * exponent * decided.abs().pow(exponent - 1) * decided.sign()
