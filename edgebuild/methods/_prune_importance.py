"""How much a network's outputs depend on each unit of coupled channels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from edgebuild.methods._channel_groups import ChannelGroup, Member, Place, places_of
from edgebuild.methods._channel_layers import WEIGHTED, Side
from edgebuild.methods._channel_runs import Inputs, answer, batch, run
from edgebuild.methods._prune_moments import Moments, mixing_readers
from edgebuild.methods._prune_refit import damped

# Samples that share a pass: few, as a pass looks in one random direction for all of them.
BATCH = 4

# By what units are told apart; the functions below say how.
Criterion = Literal["reconstruction", "activation", "taylor", "l2"]
Groups = Sequence[ChannelGroup]
# One number a unit, by the group's path; the higher, the more important.
Scores = Mapping[str, Tensor]


def importance(
    criterion: Criterion,
    network: nn.Module,
    groups: Groups,
    rows: Sequence[Inputs],
    moments: Moments,
) -> Scores:
    """Every unit's score by a criterion; by "l2" where the criterion has nothing to go by."""
    scores = CRITERIA[criterion](network, groups, rows, moments)
    unscored = [group for group in groups if not scores[group.path].any()]
    return {**scores, **l2(network, unscored, rows, moments)}


def l2(network: nn.Module, groups: Groups, rows: Sequence[Inputs], moments: Moments) -> Scores:
    """The squared weights that go with a unit, in all layers that write or read it.

    Li et al., arXiv 1608.08710; over groups as in Fang et al., DepGraph, arXiv 2301.12900.
    """
    return {
        group.path: _total(
            group,
            (_by_unit(one, one.value.square()) for one in _weights(network, group.members)),
        )
        for group in groups
    }


def activation(
    network: nn.Module, groups: Groups, rows: Sequence[Inputs], moments: Moments
) -> Scores:
    """How much energy the readers of a unit's channels draw from it.

    That is the channels' mean square times the squared weights that read them, the square of
    what Sun et al., Wanda, arXiv 2306.11695 take of each weight.
    """
    energies = {path: seen.diagonal() for path, seen in moments.items()}
    return {group.path: _total(group, _drawn(network, group, energies)) for group in groups}


def reconstruction(
    network: nn.Module, groups: Groups, rows: Sequence[Inputs], moments: Moments
) -> Scores:
    """What a layer's outputs lose with a unit even if its other inputs take over what they can.

    The saliency of Hassibi and Stork's optimal brain surgeon for each layer that reads the unit,
    as in Kurtic et al., ZipLM, arXiv 2302.04089, all units at once.
    """
    inverses = {path: torch.linalg.inv(damped(seen.double())) for path, seen in moments.items()}
    return {group.path: _total(group, _missed(network, group, inverses)) for group in groups}


def taylor(network: nn.Module, groups: Groups, rows: Sequence[Inputs], moments: Moments) -> Scores:
    """The KL divergence of the outputs when nothing reads a unit, to the second order.

    With J the outputs' derivative by the weights that read the unit, w these weights and F the
    Fisher information of the outputs, that is wᵀ Jᵀ F J w / 2. It needs no labels: random vectors
    with the covariance F give unbiased estimates (Martens, arXiv 1412.1193; as a criterion,
    Molchanov et al., arXiv 1906.10771).
    """
    learner = copy.deepcopy(network)
    for parameter in learner.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    spreads = [float(output.double().var(correction=0)) for output in run(network, batch(rows))]
    generator = torch.Generator().manual_seed(0)
    scores = {group.path: torch.zeros(group.units, dtype=torch.float64) for group in groups}
    for start in range(0, len(rows), BATCH):
        learner.zero_grad()
        with torch.enable_grad():
            outputs = answer(learner, batch(rows[start : start + BATCH]))
            _in_random_direction(outputs, spreads, generator).backward()  # type: ignore[no-untyped-call]
        for group in groups:
            scores[group.path] += _total(group, _slopes(learner, group)).square()
    return scores


CRITERIA: Mapping[Criterion, Callable[[nn.Module, Groups, Sequence[Inputs], Moments], Scores]] = {
    "reconstruction": reconstruction,
    "activation": activation,
    "taylor": taylor,
    "l2": l2,
}


def _weights(network: nn.Module, members: Iterable[Member]) -> Iterator[Place]:
    """The weights of the layers among members."""
    for member in members:
        if member.axis is None and isinstance(network.get_submodule(member.path), WEIGHTED):
            yield from (place for place in places_of(network, member) if place.tensor == "weight")


def _total(group: ChannelGroup, parts: Iterator[Tensor]) -> Tensor:
    return sum(parts, torch.zeros(group.units, dtype=torch.float64))


def _by_unit(place: Place, values: Tensor) -> Tensor:
    """Values of a tensor's shape, summed up for each unit."""
    others = [axis for axis in range(values.ndim) if axis != place.axis]
    rows = values.double().sum(others) if others else values.double()
    return rows[torch.tensor(place.rows)].sum(dim=1)


def _drawn(
    network: nn.Module, group: ChannelGroup, energies: Mapping[str, Tensor]
) -> Iterator[Tensor]:
    for member in mixing_readers(network, group):
        if member.path in energies:
            weight = _rows(network.get_submodule(member.path))
            energy = weight.square().sum(dim=1) * energies[member.path][:-1]
            yield energy[torch.tensor(member.index)].sum(dim=1)


def _missed(
    network: nn.Module, group: ChannelGroup, inverses: Mapping[str, Tensor]
) -> Iterator[Tensor]:
    for member in mixing_readers(network, group):
        if member.path in inverses:
            units = torch.tensor(member.index)
            weight = _rows(network.get_submodule(member.path))[units]
            blocks = inverses[member.path][units[:, :, None], units[:, None, :]]
            yield (weight * torch.linalg.solve(blocks, weight)).sum(dim=(1, 2))


def _rows(layer: nn.Module) -> Tensor:
    """All weights that read each input, (inputs, outputs x positions of the kernel)."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach().double().transpose(0, 1).flatten(1)


def _in_random_direction(
    outputs: Sequence[Tensor], spreads: Sequence[float], generator: torch.Generator
) -> Tensor:
    """The outputs along a random vector, whose covariance is their Fisher information.

    A (count, classes) output is taken for logits, any other for the mean of a Gaussian whose
    variance is the one between samples, as the search's loss takes them too.
    """
    total = torch.zeros(())
    for output, spread in zip(outputs, spreads, strict=True):
        if not output.requires_grad:
            continue
        direction = torch.randn(output.shape, generator=generator)
        if output.ndim == 2 and output.shape[1] > 1:
            shares = output.detach().softmax(dim=1)
            direction = direction * shares.sqrt()
            direction = direction - shares * direction.sum(dim=1, keepdim=True)
        else:
            direction = direction / (max(spread, 1e-12) * output[0].numel()) ** 0.5
        total = total + (output * direction).sum()
    return total


def _slopes(network: nn.Module, group: ChannelGroup) -> Iterator[Tensor]:
    """By how much the outputs change, to the first order, when nothing reads the units."""
    readers = [member for member in group.members if member.side is Side.READS]
    for place in _weights(network, readers or group.members):
        gradient = getattr(place.owner, place.tensor).grad
        if gradient is not None:
            yield _by_unit(place, place.value * gradient)
