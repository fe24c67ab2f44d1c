"""Lets batch normalizations speak of the workload's data, without a change of what is computed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from edgebuild.samples import StoredSamples

# So many samples tell the mean and the variance of a channel.
MOST_SAMPLES = 512
# A class made from one of these may do more than normalize.
PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass
class _Moments:
    """Sums over everything that came by, (channels,) each, in double precision."""

    count: int = 0
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def add(self, value: Tensor) -> None:
        columns = value.detach().double().transpose(0, 1).flatten(1)
        self.count += columns.shape[1]
        self.total = self.total + columns.sum(dim=1)
        self.squares = self.squares + columns.square().sum(dim=1)

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        mean = torch.as_tensor(self.total) / self.count
        return mean, (torch.as_tensor(self.squares) / self.count - mean**2).clamp_min(0)


def has_statistics(network: nn.Module) -> bool:
    """Whether there is anything to refer to other samples."""
    return next(_norms(network), None) is not None


@torch.no_grad()
def refer_to(network: nn.Module, samples: StoredSamples) -> None:
    """Puts the samples' statistics into every BatchNorm of a network in eval mode, in place.

    Weight and bias take up the difference, so that the network computes what it did. Statistics of
    other data, as of ImageNet under a head that was fitted to these features, would ruin a network
    as soon as training lets them follow its batches. Where channels are removed afterwards, what
    follows the batches is also brought back to the mean and the variance that it had in the whole
    network, as REPAIR does (Jordan et al., arXiv 2211.08403).
    """
    moments: dict[str, _Moments] = defaultdict(_Moments)
    norms = dict(_norms(network))
    handles = [
        norm.register_forward_pre_hook(_sum_up(moments[path])) for path, norm in norms.items()
    ]
    try:
        for row in samples.rows(MOST_SAMPLES):
            network(*map(torch.tensor, row))
    finally:
        _remove(handles)
    for path, norm in norms.items():
        if moments[path].count:
            _refer(norm, *moments[path].mean_and_variance())


def _norms(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """Those that hold statistics, and something to make up for others."""
    for path, module in network.named_modules():
        if type(module) in PLAIN and module.affine and module.running_mean is not None:
            yield path, module


def _sum_up(moments: _Moments) -> Callable[[nn.Module, Any], None]:
    def see(_module: nn.Module, inputs: Any) -> None:
        moments.add(inputs[0])

    return see


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def _refer(norm: Any, mean: Tensor, variance: Tensor) -> None:
    was = (norm.running_var.double() + norm.eps).sqrt()
    weight = norm.weight.double()
    norm.bias.copy_(norm.bias.double() + weight * (mean - norm.running_mean.double()) / was)
    norm.weight.copy_(weight * (variance + norm.eps).sqrt() / was)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
