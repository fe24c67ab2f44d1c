"""The layers that a method can change one by one: what they are, run on, and may be replaced by."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgebuild.vocabulary.errors import MethodFailed
from edgebuild.vocabulary.offer import Choice, LayerShape, Part, macs
from edgebuild.vocabulary.precision import LayerKind
from edgebuild.vocabulary.workload import Workload

Layer = nn.Linear | nn.Conv2d
Tensors = tuple[Tensor, ...]
Watcher = Callable[[str, Tensor], None]


@dataclass(frozen=True, eq=False)
class OwnLayer:
    """A linear layer or a 2-D convolution whose weights are its own, and what it runs on."""

    path: str
    module: Layer
    shape: LayerShape

    @property
    def macs(self) -> int:
        return macs(self.shape)

    @property
    def patch(self) -> int:
        """How many numbers an output is computed from: inputs of a group × kernel."""
        return self.module.weight[0].numel()


def own_layers(network: nn.Module, example: Tensors) -> dict[str, OwnLayer]:
    """The plain layers, by path, that run exactly once on the example.

    Left out are layers whose weights another module has too, that are subclassed, hooked or not
    padded with zeros alike on both sides, and those that are read instead of called, such as the
    `out_proj` of `nn.MultiheadAttention`.
    """
    plain = {path: layer for path, layer in _layers(network) if _is_plain(layer)}
    owners = Counter(
        parameter.untyped_storage().data_ptr()
        for _, parameter in network.named_parameters(remove_duplicate=False)
    )
    owned = {
        path: layer
        for path, layer in plain.items()
        if all(owners[one.untyped_storage().data_ptr()] == 1 for one in layer.parameters())
    }
    sizes: dict[str, list[torch.Size]] = {path: [] for path in owned}
    with watching(owned, lambda path, value: sizes[path].append(value.shape)):
        run(network, example)
    return {
        path: OwnLayer(path, owned[path], _shape(owned[path], seen[0]))
        for path, seen in sizes.items()
        if len(seen) == 1
    }


def chosen_layers(
    network: nn.Module, chosen: Mapping[Part, Choice], workload: Workload
) -> dict[str, tuple[OwnLayer, Choice]]:
    """What was chosen at which layer, by path, without layers that earlier methods removed.

    Raises:
        MethodFailed: a part that is no such layer, of the workload's network either.
    """
    layers = own_layers(network, workload.example)
    missing = sorted({part.path for part in chosen} - layers.keys())
    known = own_layers(workload.network, workload.example) if missing else {}
    for path in missing:
        if path not in known or _stands(path, network):
            raise MethodFailed(
                f"{path}: is no linear layer or 2-D convolution with weights of its own"
            )
    return {
        part.path: (layers[part.path], choice)
        for part, choice in chosen.items()
        if part.path in layers
    }


def _stands(path: str, network: nn.Module) -> bool:
    """Whether there is a module at the path, and not only something that passes its input on."""
    try:
        return any(True for _ in network.get_submodule(path).parameters())
    except AttributeError:
        return False


def replaceable(network: nn.Module, example: Tensors, paths: Sequence[str]) -> list[str]:
    """Those of the layers in whose place something else can stand that has no `weight`.

    A network may look into its layers, at `self.head.weight` or `self.head.in_features`; so each
    is put into an `nn.Sequential`, and the network is run.
    """
    if not paths or _runs_with(network, example, paths):
        return list(paths)
    if len(paths) == 1:
        return []
    half = len(paths) // 2
    return [
        *replaceable(network, example, paths[:half]),
        *replaceable(network, example, paths[half:]),
    ]


def _runs_with(network: nn.Module, example: Tensors, wrapped: Sequence[str]) -> bool:
    trial = copy.deepcopy(network)
    for path in wrapped:
        trial.set_submodule(path, nn.Sequential(trial.get_submodule(path)))
    try:
        run(trial, example)
    except Exception:
        # Whatever the network's own code raises where it misses an attribute.
        return False
    return True


@torch.no_grad()
def run(network: nn.Module, inputs: Tensors) -> None:
    """Runs a network for the sake of those who watch its layers."""
    # Copied: a network may write into its inputs.
    network(*(tensor.clone() for tensor in inputs))


@contextmanager
def watching(layers: Mapping[str, nn.Module], see: Watcher) -> Iterator[None]:
    """Calls `see(path, input)` whenever one of the layers is about to run."""
    with ExitStack() as hooks:
        for path, layer in layers.items():

            def hook(
                _: nn.Module, given: Tensors, named: dict[str, Tensor], path: str = path
            ) -> None:
                see(path, given[0] if given else named["input"])

            hooks.enter_context(layer.register_forward_pre_hook(hook, with_kwargs=True))
        yield


def _layers(network: nn.Module) -> Iterator[tuple[str, Layer]]:
    for path, module in network.named_modules(remove_duplicate=False):
        # A subclass may compute something else, and the network itself has no place to stand in.
        if path and type(module) in (nn.Linear, nn.Conv2d):
            assert isinstance(module, Layer)
            yield path, module


def _is_plain(layer: Layer) -> bool:
    if layer._forward_hooks or layer._forward_pre_hooks:
        return False
    if isinstance(layer, nn.Linear):
        return True
    return layer.padding_mode == "zeros" and _padding(layer) is not None


def _padding(layer: nn.Conv2d) -> tuple[int, int] | None:
    """Zeros on each side of height and width; None where "same" needs one more on one side."""
    if layer.padding == "valid":
        return 0, 0
    if layer.padding == "same":
        high, wide = (
            step * (size - 1) for size, step in zip(layer.kernel_size, layer.dilation, strict=True)
        )
        return None if high % 2 or wide % 2 else (high // 2, wide // 2)
    assert not isinstance(layer.padding, str)
    return layer.padding[0], layer.padding[1]


def _shape(layer: Layer, given: torch.Size) -> LayerShape:
    if isinstance(layer, nn.Linear):
        rows = math.prod(given[:-1])
        # One row without tokens is a product of its own to runtimes: of a vector, not a matrix.
        extent = () if len(given) <= 2 and rows == 1 else (rows,)
        return LayerShape(LayerKind.LINEAR, layer.in_features, layer.out_features, extent)
    padding = _padding(layer)
    assert padding is not None
    is_depthwise = layer.groups == layer.in_channels > 1
    return LayerShape(
        LayerKind.DEPTHWISE if is_depthwise else LayerKind.CONVOLUTION,
        layer.in_channels,
        layer.out_channels,
        tuple(given[-2:]),
        layer.kernel_size,
        layer.stride,
        padding,
        layer.dilation,
        layer.groups,
    )
