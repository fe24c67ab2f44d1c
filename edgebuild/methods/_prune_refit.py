"""Lets the channels that stay take over what those that go had to say, by least squares.

He et al., arXiv 1707.06168, solve for a layer's weights when its inputs are pruned; here each
input that goes is predicted from those that stay and a constant, which is the same for every
position of a kernel.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from edgebuild.methods._channel_groups import Removal, shared_parameters
from edgebuild.methods._prune_moments import Moments, mixing_readers

# Added to the moments' diagonal as a share of its mean: fewer samples than channels must do.
DAMPING = 0.01


def refit(network: nn.Module, removal: Removal, moments: Moments) -> None:
    """Moves in place, ahead of a removal, what readers draw from units that go to others.

    A layer without a bias gets one. Layers that share a weight stay as they are.
    """
    shared = {owner for owners in shared_parameters(network) for owner, _ in owners}
    gone: dict[str, set[int]] = defaultdict(set)
    for group, units in removal:
        for member in mixing_readers(network, group):
            gone[member.path] |= {channel for unit in units for channel in member.index[unit]}
    for path, channels in gone.items():
        layer = network.get_submodule(path)
        if path in moments and channels and layer not in shared:
            _take_over(layer, sorted(channels), moments[path].double())


def damped(moments: Tensor) -> Tensor:
    """Moments that can be inverted: with a little noise in every channel."""
    noise = DAMPING * moments.diagonal()[:-1].mean() + 1e-12
    diagonal = torch.full((len(moments),), float(noise), dtype=moments.dtype)
    diagonal[-1] = 0.0
    return moments + torch.diag(diagonal)


def _take_over(layer: nn.Module, gone: list[int], moments: Tensor) -> None:
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, nn.Parameter)
    lost = set(gone)
    kept = [row for row in range(len(moments)) if row not in lost]
    predictors = torch.linalg.solve(damped(moments[kept][:, kept]), moments[kept][:, gone])
    # (outputs, inputs, positions of the kernel)
    values = weight.detach().double().reshape(*weight.shape[:2], -1)
    drawn = torch.einsum("ogk,sg->osk", values[:, gone], predictors)
    values[:, kept[:-1]] += drawn[:, :-1]
    shift = drawn[:, -1].sum(dim=-1)
    if isinstance(bias, nn.Parameter):
        shift += bias.detach()
    layer.weight = _like(weight, values.reshape(weight.shape))
    layer.bias = _like(weight, shift)


def _like(parameter: nn.Parameter, value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.to(parameter.dtype), requires_grad=parameter.requires_grad)
