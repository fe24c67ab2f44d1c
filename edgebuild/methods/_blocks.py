"""Blocks that a network runs without: what they map has the shape of what they read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgebuild.methods._channel_layers import WEIGHTED

CONTAINERS = nn.Sequential | nn.ModuleList | nn.ModuleDict
LAYERS = WEIGHTED | nn.RNNBase


class Skip(nn.Module):
    """Stands where a block was: answers with its first argument, whatever else it is given."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return inputs[0] if inputs else next(iter(named.values()))


@dataclass(frozen=True)
class Block:
    """A member of a container that could be skipped, and the weighted layers inside it."""

    path: str
    layers: frozenset[str]


def find_blocks(network: nn.Module, example: tuple[Tensor, ...]) -> list[Block]:
    """Members of containers with layers inside that answer a tensor with one of its shape."""
    candidates = {
        f"{path}.{name}".strip("."): child
        for path, container in network.named_modules()
        if isinstance(container, CONTAINERS)
        for name, child in container.named_children()
        if not isinstance(child, CONTAINERS) and _has_layers(child)
    }
    calls: dict[nn.Module, list[bool]] = {child: [] for child in candidates.values()}

    def watch(module: nn.Module, inputs: Any, named: Any, output: Any) -> None:
        given = Skip()(*inputs, **named) if inputs or named else None
        calls[module].append(_is_alike(given, output))

    hooks = [child.register_forward_hook(watch, with_kwargs=True) for child in calls]
    with torch.no_grad():
        network(*(tensor.clone() for tensor in example))
    for hook in hooks:
        hook.remove()
    return [
        Block(path, _layers_only_in(network, path))
        for path, child in candidates.items()
        if calls[child] and all(calls[child])
    ]


def skip(network: nn.Module, paths: Iterable[str]) -> None:
    """Takes blocks out of a network in place."""
    # Inner blocks first: they are gone once what holds them is.
    for path in sorted(paths, key=lambda path: path.count("."), reverse=True):
        network.set_submodule(path, Skip())


def _has_layers(module: nn.Module) -> bool:
    return any(path and isinstance(layer, LAYERS) for path, layer in module.named_modules())


def _layers_only_in(network: nn.Module, block: str) -> frozenset[str]:
    """The layers of a block, by their first names, that nothing outside of it uses too."""
    paths: dict[nn.Module, list[str]] = {}
    for path, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, LAYERS):
            paths.setdefault(module, []).append(path)
    return frozenset(
        names[0] for names in paths.values() if all(name.startswith(f"{block}.") for name in names)
    )


def _is_alike(given: Any, output: Any) -> bool:
    return (
        isinstance(given, Tensor)
        and isinstance(output, Tensor)
        and given.shape == output.shape
        and given.dtype == output.dtype
    )
