"""Lets batch normalizations speak of the workload's data, without a change of what is computed."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgebuild.methods._batch_norms import Norm, plain_norms
from edgebuild.methods._own_layers import run, watching
from edgebuild.samples import StoredSamples

# So many samples tell the mean and the variance of a channel.
MOST_SAMPLES = 512

# The mean and the variance of every channel, (channels,) each in double precision, by path.
Statistics = Mapping[str, tuple[Tensor, Tensor]]


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


@torch.no_grad()
def statistics_of(network: nn.Module, samples: StoredSamples) -> Statistics:
    """What comes to every BatchNorm of a network in eval mode; empty where there is none."""
    moments: dict[str, _Moments] = defaultdict(_Moments)
    norms = referable(network)
    if not norms:
        return {}
    with watching(norms, lambda path, value: moments[path].add(value)):
        for row in samples.rows(MOST_SAMPLES):
            run(network, tuple(map(torch.tensor, row)))
    return {path: seen.mean_and_variance() for path, seen in moments.items()}


@torch.no_grad()
def referred(network: nn.Module, statistics: Statistics) -> nn.Module:
    """A copy of a network in eval mode whose BatchNorms hold these statistics; itself without any.

    Weight and bias take up the difference, so that the network computes what it did. Statistics of
    other data, as of ImageNet under a head that was fitted to these features, would ruin a network
    as soon as training lets them follow its batches. Where channels are removed afterwards, what
    follows the batches is also brought back to the mean and the variance that it had in the whole
    network, as REPAIR does (Jordan et al., arXiv 2211.08403).
    """
    if not statistics:
        return network
    changed = copy.deepcopy(network).eval()
    norms = referable(changed)
    for path, seen in statistics.items():
        _refer(norms[path], *seen)
    return changed


def referable(network: nn.Module) -> dict[str, Norm]:
    """Those with something to make up for other statistics, by path."""
    return {path: norm for path, norm in plain_norms(network) if norm.affine}


def _refer(norm: Norm, mean: Tensor, variance: Tensor) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    was = (norm.running_var.double() + norm.eps).sqrt()
    weight = norm.weight.double()
    norm.bias.copy_(norm.bias.double() + weight * (mean - norm.running_mean.double()) / was)
    norm.weight.copy_(weight * (variance + norm.eps).sqrt() / was)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
