"""Says in words into which layers channels go, where nothing else can tell what becomes of them."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgebuild.methods._channel_layers import WEIGHTED, Side, size_of
from edgebuild.methods._channel_runs import Inputs, run


def not_followed(network: nn.Module, example: Inputs, path: str) -> str:
    """Why the channels that a layer puts out stay as they are: the layers that could not be read.

    Those that have no channels to lose are to blame where there are any.
    """
    try:
        found = readers(network, example, path)
    except Exception:
        found = []  # A reason without names is better than none.
    to_blame = [name for name in found if not _can_lose(network.get_submodule(name))] or found
    kinds = {name: type(network.get_submodule(name)).__name__ for name in to_blame}
    named = " and ".join(f"{name} ({kind})" for name, kind in kinds.items())
    return f"cannot follow its channels into {named or 'the code that reads them'}"


def readers(network: nn.Module, example: Inputs, path: str) -> list[str]:
    """The layers with weights that the outputs of one reach first, in the order of execution.

    Found by running: what the layer puts out is changed, and whoever then sees other inputs reads
    it. Each of these passes on what it did before, so that nothing behind it is found.
    """
    origin = network.get_submodule(path)
    inner = {name for name, _ in origin.named_modules(prefix=path)}
    layers = {
        name: module
        for name, module in network.named_modules()
        if name not in inner and any(True for _ in module.parameters(recurse=False))
    }
    seen: dict[str, list[Any]] = defaultdict(list)
    given: dict[str, list[Any]] = defaultdict(list)
    found: dict[str, None] = {}

    def remember(name: str, _: nn.Module, inputs: Any, outputs: Any) -> None:
        seen[name].append(_copied(inputs))
        given[name].append(_copied(outputs))

    def compare(name: str, _: nn.Module, inputs: Any, outputs: Any) -> Any:
        before, after = seen[name].pop(0), given[name].pop(0)
        if not _is_same(before, inputs):
            found.setdefault(name)
        return after

    def disturb(_: nn.Module, __: Any, outputs: Tensor) -> Tensor:
        noise = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0))
        return outputs + (1 + outputs.abs().max()) * noise.to(outputs)

    hooks = [layer.register_forward_hook(partial(remember, n)) for n, layer in layers.items()]
    try:
        run(network, example)
        for hook in hooks:
            hook.remove()
        hooks = [layer.register_forward_hook(partial(compare, n)) for n, layer in layers.items()]
        hooks.append(origin.register_forward_hook(disturb))
        run(network, example)
    finally:
        for hook in hooks:
            hook.remove()
    return list(found)


def _can_lose(layer: nn.Module) -> bool:
    """Whether channels that the layer reads could be taken from it."""
    if isinstance(layer, WEIGHTED):
        return True
    try:
        return size_of(layer, Side.READS) > 0
    except TypeError:
        return False


def _copied(values: Any) -> list[Any] | Any:
    return pytree.tree_map(lambda one: one.clone() if isinstance(one, Tensor) else one, values)


def _is_same(before: Any, after: Any) -> bool:
    pairs = zip(pytree.tree_leaves(before), pytree.tree_leaves(after), strict=True)
    return all(torch.equal(one, two) for one, two in pairs if isinstance(one, Tensor))
