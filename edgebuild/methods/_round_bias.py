"""Corrects biases by the mean error that rounded weights make on calibration samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from edgebuild.methods._round_layers import Layer


def add_biases(network: nn.Module, layers: Iterable[Layer]) -> int:
    """Gives zeros as a bias to every layer module without one; returns to how many."""
    weights = {id(layer.weight): layer for layer in layers if layer.is_alone}
    added = 0
    for module in network.modules():
        layer = weights.get(id(getattr(module, "weight", None)))
        if layer is not None and getattr(module, "bias", 0) is None:
            module.bias = nn.Parameter(torch.zeros(layer.rows().shape[:2].numel()))
            added += 1
    return added


def correct_bias(layer: Layer, exact: Sequence[Tensor], rounded: Sequence[Tensor]) -> None:
    """Adds to the bias what the rounded outputs lack on average, and to the outputs too.

    The empirical bias correction of Nagel et al., "Data-Free Quantization Through Weight
    Equalization and Bias Correction" (arXiv 1906.04721), section 4.2 and appendix D.
    """
    assert layer.bias is not None
    axis = layer.channel_axis(exact[0].ndim)
    lacking = torch.stack(
        [_mean(one - other, axis) for one, other in zip(exact, rounded, strict=True)]
    ).mean(dim=0)
    with torch.no_grad():
        layer.bias.add_(lacking)
        shift = lacking.reshape(-1, *(1,) * (exact[0].ndim - axis - 1))
        for value in rounded:
            value.add_(shift)


def _mean(difference: Tensor, axis: int) -> Tensor:
    return difference.movedim(axis, -1).flatten(0, -2).mean(dim=0)
