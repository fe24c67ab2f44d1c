"""Finds which channels are coupled, with torch-pruning's dependency graph.

Fang et al., DepGraph: Towards Any Structural Pruning, arXiv 2301.12900. The graph follows
gradients, and takes every operator that it does not know for one that passes channels on. What it
says is therefore a hypothesis; where it does not add up, further ones are tried in turn.
"""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from edgebuild.methods._channel_graph import NotFollowed, build_graph, coupled_with
from edgebuild.methods._channel_groups import ChannelGroup, Counter, Member, Unfit
from edgebuild.methods._channel_layers import (
    WEIGHTED,
    Convolution,
    Side,
    is_depthwise,
    size_of,
)
from edgebuild.methods._channel_readers import not_followed
from edgebuild.methods._channel_runs import Inputs, run
from edgebuild.vocabulary.errors import told

LOG = logging.getLogger(__name__)
# How attention modules call the number of their heads.
HEAD_COUNTS = (
    "num_heads", "heads", "n_heads", "n_head", "nhead", "num_attention_heads", "n_attn_heads",
)  # fmt: skip
SPLITTING = (tp.ops.OPTYPE.SPLIT, tp.ops.OPTYPE.UNBIND, tp.ops.OPTYPE.SLICE)

# What could be true of one set of coupled channels, most likely first.
Hypotheses = tuple[ChannelGroup, ...]


def find_coupled(
    network: nn.Module, example: Inputs
) -> tuple[dict[str, Hypotheses], dict[str, str]]:
    """Hypotheses about all coupled channels in the order of execution, by first layer.

    Beside them, why others are left out.

    Raises:
        Exception: whatever the network or torch-pruning raise where the graph cannot be built.
    """
    order = _order_of_execution(network, example)
    trial = _Trial(network, example)
    graph = build_graph(network, example)
    found: dict[str, Hypotheses] = {}
    declined: dict[str, str] = {}
    seen: set[nn.Module] = set()
    for root in list(graph.module2node):
        if not isinstance(root, tp.ops.TORCH_CONV | nn.Linear) or root in seen:
            continue
        path = graph._module2name[root]
        try:
            coupled = coupled_with(graph, root, range(size_of(root, Side.WRITES)))
            seen |= {
                entry.dep.target.module
                for entry in coupled
                if _side(graph, entry) is not Side.READS
            }
            reading = _Reading(network, graph, coupled, order)
            path = reading.path
            found[path] = reading.hypotheses(trial)
        except NotFollowed:
            # One group that torch-pruning fails at is no reason to lose the others.
            declined[path] = not_followed(network, example, path)
        except Unfit as error:
            declined[path] = str(error)
        except Exception as error:
            LOG.debug("reading the channels of %s failed", path, exc_info=True)
            declined[path] = f"its channels could not be read, by {told(error)}"
    return {path: found[path] for path in sorted(found, key=order.__getitem__)}, declined


def _order_of_execution(network: nn.Module, example: Inputs) -> dict[str, int]:
    names = {module: path for path, module in network.named_modules()}
    called: dict[str, None] = {}

    def watch(module: nn.Module, *_: Any) -> None:
        called.setdefault(names[module])

    hooks = [module.register_forward_hook(watch) for module in names]
    with torch.no_grad():
        network(*(tensor.clone() for tensor in example))
    for hook in hooks:
        hook.remove()
    return {path: number for number, path in enumerate(called)}


def _side(graph: Any, entry: Any) -> Side:
    module, handler = entry.dep.target.module, entry.dep.handler
    if isinstance(module, nn.Embedding):
        return Side.WRITES
    is_written = graph.is_out_channel_pruning_fn(handler)
    is_read = graph.is_in_channel_pruning_fn(handler)
    if is_written and is_read:
        return Side.PASSES
    return Side.WRITES if is_written else Side.READS


@dataclass(frozen=True)
class _Item:
    """One entry of torch-pruning's group: `channels[i]` of a layer belongs to `roots[i]`."""

    path: str
    side: Side
    size: int
    channels: Sequence[int]
    roots: Sequence[int]
    axis: int | None = None


class _Reading:
    """One of torch-pruning's groups, read as a group of ours."""

    def __init__(
        self, network: nn.Module, graph: Any, coupled: Any, order: Mapping[str, int]
    ) -> None:
        self._network, self._graph, self._coupled = network, graph, coupled
        self._root = coupled[0].dep.target.module
        self._names = {module: path for path, module in network.named_modules()}
        self._width = size_of(self._root, Side.WRITES)
        modules = [entry.dep.target.module for entry in coupled]
        writers = {
            self._names[module]
            for entry, module in zip(coupled, modules, strict=True)
            if module in self._names and _side(self._graph, entry) is Side.WRITES
        }
        root = self._names[self._root]
        self.path = min(writers or {root}, key=order.__getitem__)

    def hypotheses(self, trial: _Trial) -> Hypotheses:
        """The units may be heads, single channels, or one channel of every segment.

        Heads come first where the network reads how many there are.

        Raises:
            Unfit: it holds a layer that cannot lose channels, or does not add up at all.
        """
        items = [item for item in map(self._item, self._coupled) if item is not None]
        groups = [self._grouped(items, units) for units in self._units(items)]
        found: list[ChannelGroup] = []
        for group in filter(None, groups):
            heads = list(self._by_heads(group))
            read = [one for one in heads if trial.is_read(one.counters)]
            unread = [one for one in heads if one not in read]
            found += [*read, group, *unread, *self._by_segments(items, group)]
        found = [group for group in found if group.units > 1]
        if not found:
            raise Unfit("its channels are rearranged in an unknown way, or there is only one")
        return tuple(found)

    def _item(self, entry: Any) -> _Item | None:
        module, side = entry.dep.target.module, _side(self._graph, entry)
        if isinstance(module, nn.Parameter):
            return self._item_of_parameter(entry, module)
        is_scalar = isinstance(module, nn.PReLU) and module.num_parameters == 1
        if module not in self._names or is_scalar:
            return None  # an operator, or as good as one
        try:
            size = size_of(module, side)
        except TypeError:
            name, kind = self._names[module], type(module).__name__
            raise Unfit(f"its channels go into {name} ({kind}), which cannot lose any") from None
        return _Item(self._names[module], side, size, entry.idxs, entry.root_idxs)

    def _item_of_parameter(self, entry: Any, parameter: nn.Parameter) -> _Item:
        path = str(self._graph._param_to_name[parameter])
        axis = entry.dep.target.pruning_dim % parameter.ndim
        owner, _, name = path.rpartition(".")
        module = self._network.get_submodule(owner)
        if isinstance(module, nn.RMSNorm) and name == "weight":
            return _Item(owner, Side.PASSES, len(parameter), entry.idxs, entry.root_idxs)
        size = parameter.shape[axis]
        return _Item(path, Side.PASSES, size, entry.idxs, entry.root_idxs, axis)

    def _units(self, items: Sequence[_Item]) -> Iterator[list[list[int]]]:
        """The root's channels, in such sets as belong together."""
        singles = [[channel] for channel in range(self._width)]
        beyond = [item.size for item in items if max(item.channels) >= item.size]
        if not beyond:
            has_split = any(entry.dep.target.type in SPLITTING for entry in self._coupled)
            yield self._closures() if has_split else singles
        elif self._width % min(beyond) == 0:
            # A layer that reads fewer channels: several have been made one, such as query, key
            # and value, the halves of a gated unit, or the pixels of a pixel shuffle.
            size, folds = min(beyond), self._width // min(beyond)
            yield [list(range(unit, self._width, size)) for unit in range(size)]
            yield [list(range(unit * folds, (unit + 1) * folds)) for unit in range(size)]

    def _closures(self) -> list[list[int]]:
        """What goes with each of the root's channels, by the graph."""
        found: dict[tuple[int, ...], None] = {}
        for channel in range(self._width):
            group = coupled_with(self._graph, self._root, [channel])
            found.setdefault(tuple(sorted(set(group[0].idxs))))
        if sum(map(len, found)) != self._width:
            raise Unfit("its channels are split in an unknown way")
        return [list(closure) for closure in found]

    def _grouped(self, items: Sequence[_Item], units: list[list[int]]) -> ChannelGroup | None:
        """The group with these units of the root; None where a layer has no such channels."""
        unit_of = {root: number for number, unit in enumerate(units) for root in unit}
        is_folded = len(units) < self._width
        members = []
        for item in items:
            index: list[dict[int, None]] = [{} for _ in units]
            for channel, root in zip(item.channels, item.roots, strict=True):
                unit = unit_of[root]
                is_beyond = is_folded and item.size == len(units)
                index[unit][unit if is_beyond else channel] = None
            rows = tuple(tuple(channels) for channels in index)
            if any(channel >= item.size for row in rows for channel in row):
                return None
            members.append(Member(item.path, item.side, rows, item.axis))
        return ChannelGroup(self.path, self._channels(members), len(units), tuple(members))

    def _channels(self, members: Sequence[Member]) -> int:
        """How wide the narrowest layer is that has channels of every unit."""
        return min(
            sum(map(len, member.index))
            for member in members
            if member.axis is None
            and isinstance(self._network.get_submodule(member.path), WEIGHTED)
            and min(map(len, member.index)) == max(map(len, member.index)) > 0
        )

    def _by_heads(self, group: ChannelGroup) -> Iterator[ChannelGroup]:
        """The group in whole heads, where the code around it counts heads."""
        for counters in _head_counters(self._network, group):
            heads = getattr(self._network.get_submodule(counters[0].path), counters[0].name)
            if 1 < heads < group.units and group.units % heads == 0:
                size = group.units // heads
                blocks = [range(head * size, (head + 1) * size) for head in range(heads)]
                merged = _merged(group, blocks)
                yield replace(merged, counters=counters, has_heads=True)

    def _by_segments(self, items: Sequence[_Item], group: ChannelGroup) -> Iterator[ChannelGroup]:
        """The group in units that have one channel of each segment."""
        for segments in self._segments(items):
            if group.units % segments == 0:
                size = group.units // segments
                yield _merged(group, [range(i, group.units, size) for i in range(size)])

    def _segments(self, items: Sequence[_Item]) -> list[int]:
        """Into how many equal parts layers and operators divide the channels."""
        found = set()
        for item in items:
            if item.axis is None:
                module = self._network.get_submodule(item.path)
                if isinstance(module, nn.GroupNorm):
                    found.add(module.num_groups)
                if isinstance(module, Convolution) and not is_depthwise(module):
                    found.add(module.groups)
        for entry in self._coupled:
            if entry.dep.target.type in SPLITTING:
                found.add(len(entry.dep.target.outputs))
        return sorted(found - {0, 1})


def _merged(group: ChannelGroup, sets: Sequence[Sequence[int]]) -> ChannelGroup:
    """The group with several of its units made one."""
    members = tuple(
        replace(
            member,
            index=tuple(tuple(c for unit in units for c in member.index[unit]) for units in sets),
        )
        for member in group.members
    )
    return replace(group, units=len(sets), members=members)


def _head_counters(network: nn.Module, group: ChannelGroup) -> Iterator[tuple[Counter, ...]]:
    """Attributes of the layers' owners that count heads; then with those that count channels.

    An attention's heads are inside of the module that counts them, or right beside it.
    """
    owners = dict.fromkeys(_owner(member.path) for member in group.members)
    around = _common_owner([member.path for member in group.members])
    by_count: dict[int, list[Counter]] = defaultdict(list)
    for owner in owners:
        beside = _owner(owner)
        if beside and not f"{around}.".startswith(f"{beside}."):
            continue
        for name in HEAD_COUNTS:
            if type(count := getattr(network.get_submodule(owner), name, None)) is int:
                by_count[count].append(Counter(owner, name))
    for counters in by_count.values():
        yield tuple(counters)
        widths = tuple(
            Counter(counter.path, name)
            for counter in counters
            for name, value in vars(network.get_submodule(counter.path)).items()
            if type(value) is int and value == group.units and name not in HEAD_COUNTS
        )
        if widths:
            yield (*counters, *widths)


def _common_owner(paths: Sequence[str]) -> str:
    """The path of the innermost module that all of these are in."""
    owners = [path.split(".")[:-1] for path in paths]
    names = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*owners, strict=False))
    return ".".join(name for name, *_ in names)


def _owner(path: str) -> str:
    return path.rpartition(".")[0]


class _Trial:
    """Whether the network computes anything else when it counts other heads."""

    def __init__(self, network: nn.Module, example: Inputs) -> None:
        self._network, self._example = network, example
        self._wanted = run(network, example)
        self._known: dict[tuple[Counter, ...], bool] = {}

    def is_read(self, counters: tuple[Counter, ...]) -> bool:
        if counters not in self._known:
            self._known[counters] = self._changes(counters)
        return self._known[counters]

    def _changes(self, counters: tuple[Counter, ...]) -> bool:
        owners = [self._network.get_submodule(counter.path) for counter in counters]
        counts = [getattr(owner, c.name) for owner, c in zip(owners, counters, strict=True)]
        try:
            for owner, counter in zip(owners, counters, strict=True):
                setattr(owner, counter.name, 1)
            return not all(map(torch.equal, self._wanted, run(self._network, self._example)))
        except Exception:
            return True
        finally:
            for owner, counter, count in zip(owners, counters, counts, strict=True):
                setattr(owner, counter.name, count)
