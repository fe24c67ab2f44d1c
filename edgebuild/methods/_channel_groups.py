"""Groups of coupled channels: what belongs together, and how it is cut out of a network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgebuild.methods._channel_layers import Side, resize, rows_of, size_of, tensors_of


class Unfit(Exception):
    """Channels that cannot be removed; says why."""


@dataclass(frozen=True)
class Member:
    """Where a group's channels are in one layer, or along an axis of one bare parameter.

    `index` has for each unit its channels on that side of the layer.
    """

    path: str
    side: Side
    index: tuple[tuple[int, ...], ...]
    axis: int | None = None


@dataclass(frozen=True)
class Counter:
    """An integer attribute that the network's code reads: of heads, or of all their channels."""

    path: str
    name: str


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that residuals, concatenations and the like tie to each other.

    It falls into units that can be removed one by one: single channels, whole heads, or the
    channels that have the same place in each group of a convolution.

    Attributes:
        path: the first layer that puts them out.
        channels: how many the narrowest of its layers has.
        units: the number of removable units.
        members: all the places where the channels are.
        counters: what to scale with the share that is kept.
        has_heads: whether the units are heads.
    """

    path: str
    channels: int
    units: int
    members: tuple[Member, ...]
    counters: tuple[Counter, ...] = ()
    has_heads: bool = False

    @property
    def unit_channels(self) -> int:
        return self.channels // self.units


# Units that go, by group; and units that stand for each other, of which the first one stays.
Removal = Sequence[tuple[ChannelGroup, Collection[int]]]
Classes = Sequence[Sequence[int]]


def remove_units(network: nn.Module, removal: Removal) -> None:
    """Cuts units out of a network in place, all at once; what stays keeps its order.

    Raises:
        Unfit: a weight that several layers share, and that they would cut differently.
    """
    shared = shared_parameters(network)
    rows: dict[tuple[nn.Module, str, int], set[int]] = defaultdict(set)
    channels: dict[tuple[nn.Module, Side], set[int]] = defaultdict(set)
    for group, units in removal:
        for member in group.members:
            for place in places_of(network, member):
                gone = rows[place.owner, place.tensor, place.axis]
                gone.update(row for unit in units for row in place.rows[unit])
            if member.axis is None:
                owner = network.get_submodule(member.path)
                gone = channels[owner, member.side]
                gone.update(channel for unit in units for channel in member.index[unit])
        _count_down(network, group, len(units))
    for (owner, tensor, axis), gone in rows.items():
        _keep_others(Place(owner, tensor, axis, ()), gone)
    for (owner, side), gone in channels.items():
        resize(owner, side, size_of(owner, side) - len(gone))
    _share_again(shared)


def imitate(network: nn.Module, group: ChannelGroup, classes: Classes) -> None:
    """Makes all units of a class equal to its first one: they carry the same values then."""
    for member in group.members:
        if member.side is not Side.READS:
            for place in places_of(network, member):
                first, others = _matched(place, classes)
                values = place.value.index_select(place.axis, first)
                place.put(place.value.index_copy(place.axis, others, values))


def gather(network: nn.Module, group: ChannelGroup, classes: Classes) -> None:
    """Lets the readers of each class's first unit read it for all of the class."""
    for member in group.members:
        if member.side is Side.READS:
            for place in places_of(network, member):
                first, others = _matched(place, classes)
                values = place.value.index_select(place.axis, others)
                place.put(place.value.index_add(place.axis, first, values))


@dataclass(frozen=True)
class Place:
    """A group's rows of one tensor along one axis, by unit."""

    owner: nn.Module
    tensor: str
    axis: int
    rows: tuple[tuple[int, ...], ...]

    @property
    def value(self) -> Tensor:
        value = getattr(self.owner, self.tensor)
        assert isinstance(value, Tensor)
        return value.detach()

    def put(self, value: Tensor) -> None:
        """Replaces the tensor, for this module alone."""
        old = getattr(self.owner, self.tensor)
        if isinstance(old, nn.Parameter):
            value = nn.Parameter(value, requires_grad=old.requires_grad)
        setattr(self.owner, self.tensor, value)


def places_of(network: nn.Module, member: Member) -> Iterator[Place]:
    """The tensors that a member has its channels in."""
    if member.axis is not None:
        owner, _, name = member.path.rpartition(".")
        yield Place(network.get_submodule(owner), name, member.axis, member.index)
        return
    module = network.get_submodule(member.path)
    for tensor, axis in tensors_of(module, member.side).items():
        yield Place(module, tensor, axis, rows_of(module, tensor, axis, member.index))


def refuse_ill_formed(network: nn.Module, group: ChannelGroup) -> None:
    """Units must be alike in every member, and lie apart and inside of its tensors.

    Raises:
        Unfit: they do not.
    """
    for member in group.members:
        if len(set(map(len, member.index))) > 1:
            raise Unfit(f"not all of its channels are in {member.path!r}")
        for place in places_of(network, member):
            rows = [row for unit in place.rows for row in unit]
            if len(set(rows)) < len(rows):
                raise Unfit(f"two of its channels share a weight in {member.path!r}")
            if rows and max(rows) >= place.value.shape[place.axis]:
                raise Unfit(f"{member.path!r} arranges its channels in an unknown way")


def shared_parameters(network: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """Where each parameter hangs that hangs in several modules."""
    found: dict[nn.Parameter, list[tuple[nn.Module, str]]] = defaultdict(list)
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                found[parameter].append((module, name))
    return [owners for owners in found.values() if len(owners) > 1]


def _matched(place: Place, classes: Classes) -> tuple[Tensor, Tensor]:
    """The rows of each class's first unit, beside those of the class's other units."""
    pairs = [(unit[0], other) for unit in classes for other in unit[1:]]
    firsts = [row for first, _ in pairs for row in place.rows[first]]
    others = [row for _, other in pairs for row in place.rows[other]]
    return _numbers(firsts, place), _numbers(others, place)


def _numbers(rows: Iterable[int], place: Place) -> Tensor:
    return torch.tensor(list(rows), dtype=torch.int64, device=place.value.device)


def _keep_others(place: Place, gone: Collection[int]) -> None:
    kept = [row for row in range(place.value.shape[place.axis]) if row not in gone]
    place.put(place.value.index_select(place.axis, _numbers(kept, place)))


def _count_down(network: nn.Module, group: ChannelGroup, gone: int) -> None:
    for counter in group.counters:
        owner = network.get_submodule(counter.path)
        count = getattr(owner, counter.name)
        setattr(owner, counter.name, count * (group.units - gone) // group.units)


def _share_again(shared: list[list[tuple[nn.Module, str]]]) -> None:
    for (first, name), *others in shared:
        kept = getattr(first, name)
        for owner, other_name in others:
            if not torch.equal(getattr(owner, other_name), kept):
                raise Unfit("layers that share a weight would lose different channels of it")
            setattr(owner, other_name, kept)
