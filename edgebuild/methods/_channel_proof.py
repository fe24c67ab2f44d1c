"""Proves on the network itself which hypotheses about coupled channels are true.

Where several channels carry the same values, and each one's readers weigh them alike, one of them
can stand for all. So make the channels of a group equal in small classes; a copy that keeps one of
each class, whose readers add up the weights of the class, must put out exactly the same. It does
so behind normalizations too, and does not where channels are mixed in a way that is not known.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from edgebuild.methods._blocks import Block, skip
from edgebuild.methods._channel_coupling import Hypotheses
from edgebuild.methods._channel_groups import (
    ChannelGroup,
    Unfit,
    gather,
    imitate,
    refuse_ill_formed,
    remove_units,
)
from edgebuild.methods._channel_runs import Inputs, is_close, run, shapes
from edgebuild.methods._prune_attention import join_again

LOG = logging.getLogger(__name__)
_One = TypeVar("_One")


class Proof:
    """Runs changed copies of one network, in which attention is spelled out.

    `example` has batch 1, `samples` a larger one where the network can run it.
    """

    def __init__(self, network: nn.Module, example: Inputs, samples: Inputs) -> None:
        self._network, self._example = network, example
        self._precise, self._samples = _precise(network, samples)
        self._shapes = shapes(run(network, example))

    def of_groups(
        self, hypotheses: Mapping[str, Hypotheses]
    ) -> tuple[list[ChannelGroup], dict[str, str]]:
        """The first true hypothesis about each group, and why others have none.

        All groups that are found can lose units together, in any numbers.
        """
        proven: list[ChannelGroup] = []
        declined: dict[str, str] = {}
        pending = dict(hypotheses)
        while pending:
            first = [options[0] for options in pending.values()]
            # One look at the shapes sorts out the most before values are looked at.
            likely, refused = _select([], first, partial(self._refusal, rounds=1))
            proven, wrong = _select(proven, likely, self._refusal_of_all)
            declined = {group.path: reason for group, reason in refused + wrong} | {
                path: reason for path, reason in declined.items() if path not in pending
            }
            pending = {
                path: options[1:]
                for path, options in pending.items()
                if path in declined and len(options) > 1
            }
        return proven, declined

    def of_blocks(
        self, blocks: Sequence[Block], groups: Sequence[ChannelGroup]
    ) -> tuple[list[Block], dict[str, str]]:
        """The blocks that can be skipped together, whatever the groups lose; why others cannot."""

        def refusal(chosen: Sequence[Block]) -> str:
            # Of a block that is skipped, nothing inside can be seen to work without its parts.
            reasons = (self._refusal(groups, level) for level in _levels(chosen))
            return next(filter(None, reasons), "")

        proven, refused = _select([], blocks, refusal)
        return proven, {block.path: reason for block, reason in refused}

    def _refusal_of_all(self, groups: Sequence[ChannelGroup]) -> str:
        return self._refusal(groups) or self._refusal_of_values(groups)

    def _refusal(
        self,
        groups: Sequence[ChannelGroup],
        blocks: Sequence[Block] = (),
        rounds: int | None = None,
    ) -> str:
        """Why the network does not run, or puts out other shapes; empty where it is fine."""
        try:
            for group in groups:
                refuse_ill_formed(self._network, group)
            _refuse_overlap(groups)
            for widths in itertools.islice(_widths(groups), rounds):
                removal = [
                    (group, range(kept, group.units))
                    for group, kept in zip(groups, widths, strict=True)
                ]
                changed = copy.deepcopy(self._network)
                remove_units(changed, removal)
                join_again(changed)
                skip(changed, [block.path for block in blocks])
                if shapes(run(changed, self._example)) != self._shapes:
                    return "the outputs of the network would change their shape"
        except Unfit as error:
            return str(error)
        except Exception:
            return _fails()
        return ""

    def _refusal_of_values(self, groups: Sequence[ChannelGroup]) -> str:
        """Why a smaller network would not compute what its channels mean; empty where it would."""
        generator = torch.Generator().manual_seed(0)
        alike = copy.deepcopy(self._precise)
        try:
            classes = [_classes(group.units, generator) for group in groups]
            for group, sets in zip(groups, classes, strict=True):
                imitate(alike, group, sets)
            smaller = copy.deepcopy(alike)
            for group, sets in zip(groups, classes, strict=True):
                gather(smaller, group, sets)
            gone = [[unit for one in sets for unit in one[1:]] for sets in classes]
            remove_units(smaller, list(zip(groups, gone, strict=True)))
            join_again(smaller)
            wanted, got = run(alike, self._samples), run(smaller, self._samples)
        except Unfit as error:
            return str(error)
        except Exception:
            return _fails()
        if all(map(is_close, wanted, got)):
            return ""
        return "its channels are mixed in a way that is not understood"


def _fails() -> str:
    """What the network raises is about shapes deep inside of it: for those who look for a bug."""
    LOG.debug("a network with fewer channels failed", exc_info=True)
    return "the network does not run with fewer of them: something in it counts on all"


def _select(
    proven: Sequence[_One],
    candidates: Sequence[_One],
    refusal: Callable[[Sequence[_One]], str],
    known: str = "",
) -> tuple[list[_One], list[tuple[_One, str]]]:
    """What of the candidates can join the proven ones, by halving; and the reasons of the others.

    `known` is the refusal of all of them, where it has been asked already.
    """
    together = [*proven, *candidates]
    reason = known or (refusal(together) if candidates else "")
    if not reason:
        return together, []
    if len(candidates) == 1:
        return list(proven), [(candidates[0], reason)]
    half = len(candidates) // 2
    first, refused = _select(proven, candidates[:half], refusal)
    second, others = _select(first, candidates[half:], refusal, "" if refused else reason)
    return second, refused + others


def _levels(blocks: Sequence[Block]) -> list[list[Block]]:
    """The blocks that are in no other one, those that are in one, and so on."""
    levels: dict[int, list[Block]] = {}
    for block in blocks:
        around = sum(block.path.startswith(f"{other.path}.") for other in blocks)
        levels.setdefault(around, []).append(block)
    return list(levels.values())


def _precise(network: nn.Module, samples: Inputs) -> tuple[nn.Module, Inputs]:
    """The network in double precision, where rounding hides nothing; as it is where it cannot."""
    precise = copy.deepcopy(network).double()
    inputs = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in samples)
    try:
        run(precise, inputs)
    except Exception:
        return network, samples
    return precise, inputs


def _widths(groups: Sequence[ChannelGroup]) -> Iterator[list[int]]:
    """Units to keep: the least or the most, so that any two groups differ at least once."""
    for bit in range(max(len(groups) - 1, 1).bit_length()):
        yield [
            max(group.units - 1, 2) if number >> bit & 1 else 1
            for number, group in enumerate(groups)
        ]
    yield [1] * len(groups)


def _classes(units: int, generator: torch.Generator) -> list[list[int]]:
    """Units in classes of the least equal size: an average over them is one over all."""
    size = next(size for size in range(2, units + 1) if units % size == 0)
    order = torch.randperm(units, generator=generator).reshape(-1, size)
    return [sorted(row) for row in order.tolist()]


def _refuse_overlap(groups: Sequence[ChannelGroup]) -> None:
    owners: dict[tuple[str, object], str] = {}
    for group in groups:
        for place in _places(group):
            if owners.setdefault(place, group.path) != group.path:
                raise Unfit(f"its channels are also those of {owners[place]!r}")


def _places(group: ChannelGroup) -> Iterator[tuple[str, object]]:
    """All that nothing but the group may change."""
    for counter in group.counters:
        yield counter.path, counter.name
    for member in group.members:
        for unit in member.index:
            yield from ((member.path, (member.side, channel)) for channel in unit)
