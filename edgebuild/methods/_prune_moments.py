"""What layers read of the calibration samples: the second moments of their input channels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgebuild.methods._channel_groups import ChannelGroup, Member
from edgebuild.methods._channel_layers import Convolution, Side
from edgebuild.methods._channel_runs import Inputs, run

# Neighboring pixels are much alike: so many places of each sample tell enough.
PLACES = 64

# By the path of a layer that reads c channels: the mean of x xᵀ, (c + 1, c + 1), over places,
# where x are the channels' values and a one.
Moments = Mapping[str, Tensor]


def second_moments(
    network: nn.Module, groups: Iterable[ChannelGroup], rows: Sequence[Inputs]
) -> Moments:
    """What the layers that read groups see of samples of batch 1."""
    paths = {member.path for group in groups for member in mixing_readers(network, group)}
    sums: dict[str, Tensor] = {}
    hooks = [
        network.get_submodule(path).register_forward_pre_hook(_adding(path, sums))
        for path in sorted(paths)
    ]
    for inputs in rows:
        run(network, inputs)
    for hook in hooks:
        hook.remove()
    return {path: total / total[-1, -1] for path, total in sums.items()}


def mixing_readers(network: nn.Module, group: ChannelGroup) -> Iterator[Member]:
    """The layers that read a group, and whose outputs each read all of their inputs."""
    for member in group.members:
        if member.side is Side.READS:
            module = network.get_submodule(member.path)
            if isinstance(module, nn.Linear) or is_dense(module):
                yield member


def is_dense(module: nn.Module) -> bool:
    """Whether it is a convolution that is not divided into groups."""
    return isinstance(module, Convolution) and module.groups == 1


def _adding(path: str, sums: dict[str, Tensor]) -> Callable[[nn.Module, Any], None]:
    def add(module: nn.Module, inputs: Any) -> None:
        channels = -1 if isinstance(module, nn.Linear) else 1
        values = inputs[0].detach().movedim(channels, -1).flatten(0, -2)
        values = values[:: -(-len(values) // PLACES)].float()
        values = torch.cat([values, torch.ones(len(values), 1)], dim=1)
        product = values.T @ values
        sums[path] = sums[path] + product if path in sums else product

    return add
