"""Captures a network once as ATen operators: its sites, its cost and its fingerprint."""

from __future__ import annotations

import hashlib
import importlib
import logging
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from edgebuild.garbage import only_new_garbage
from edgebuild.vocabulary.errors import NotExportable
from edgebuild.vocabulary.precision import LayerKind
from edgebuild.vocabulary.program import Operator, Program, Site

CANNOT_CAPTURE = "torch.export cannot capture the network"
# Loggers that guess aloud at what an error will say, or has said.
CHATTY = ("torch.export", "torch._export", "torch.fx.experimental")
# Operators that carry weights: the kind of layer, and the position of the weight's argument.
WEIGHTED: Mapping[str, tuple[LayerKind, int]] = {
    "conv1d": (LayerKind.CONVOLUTION, 1),
    "conv2d": (LayerKind.CONVOLUTION, 1),
    "conv3d": (LayerKind.CONVOLUTION, 1),
    "conv_transpose1d": (LayerKind.TRANSPOSED, 1),
    "conv_transpose2d": (LayerKind.TRANSPOSED, 1),
    "conv_transpose3d": (LayerKind.TRANSPOSED, 1),
    "linear": (LayerKind.LINEAR, 1),
    "matmul": (LayerKind.LINEAR, 1),
    "mm": (LayerKind.LINEAR, 1),
    "addmm": (LayerKind.LINEAR, 2),
    "embedding": (LayerKind.EMBEDDING, 0),
}
RECURRENT = ("gru", "lstm", "rnn_tanh", "rnn_relu")
# Operators that only look at the same numbers in another way.
VIEWS = {
    "alias", "chunk", "clone", "contiguous", "detach", "expand", "flatten", "getitem", "numpy_T",
    "permute", "reshape", "select", "slice", "split", "split_with_sizes", "squeeze", "t", "to",
    "transpose", "unbind", "unflatten", "unsqueeze", "view",
}  # fmt: skip
# Operators that every runtime computes inside the layer before them.
FUSED = {
    "batch_norm", "clamp", "dropout", "hardswish", "hardswish_", "hardtanh", "hardtanh_", "relu",
    "relu6", "relu_",
}  # fmt: skip


def capture(network: torch.nn.Module, example: tuple[torch.Tensor, ...]) -> Program:
    """Captures `network(*example)` with torch.export.

    Raises:
        NotExportable: control flow that depends on data, or code that cannot be captured.
    """
    # One tensor object given for two arguments would be taken for one input.
    inputs = tuple(tensor.detach().clone() for tensor in example)
    try:
        with warnings.catch_warnings(), _unsaid(), torch.no_grad(), only_new_garbage():
            warnings.simplefilter("ignore")
            exported = torch.export.export(network, inputs)
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no reason given"]
        raise NotExportable(
            f"{CANNOT_CAPTURE}: {type(error).__name__}: {lines[0]}{_line_of(error)}"
        ) from error
    _refuse_unknown_shapes(exported)
    return read(exported)


@contextmanager
def _unsaid() -> Iterator[None]:
    """Holds back what torch.export says beside its error: the graph so far, and a guess at it.

    Whoever asks for logs by TORCH_LOGS gets them.
    """

    def is_said(record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING or not record.name.startswith(CHATTY)

    # The module prints the graph itself, to stderr; the user's own code may print as it likes.
    module: Any = importlib.import_module("torch.export._trace")
    handlers = [] if os.environ.get("TORCH_LOGS") else _torchs_handlers()
    for handler in handlers:
        handler.addFilter(is_said)
    module.print = lambda *_, **__: None
    try:
        yield
    finally:
        del module.print
        for handler in handlers:
            handler.removeFilter(is_said)


def _torchs_handlers() -> list[logging.Handler]:
    """Those of all of torch's loggers: some of the chatty ones have their own."""
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "torch"]
    found = (handler for name in names for handler in logging.getLogger(name).handlers)
    return list(dict.fromkeys(found))


def _line_of(error: Exception) -> str:
    """The user's line at which torch.export stopped, if it knows: the last of the graph so far."""
    graph = str(getattr(error, "partial_fx_graph", ""))
    places = re.findall(r"# File: (.+:\d+) in \w+, code: (.+)", graph)
    return " at {}: {}".format(*places[-1]) if places else ""


def _refuse_unknown_shapes(exported: ExportedProgram) -> None:
    """Devices get networks whose shapes are all known.

    Raises:
        NotExportable: an operator puts out as many values as its input happens to have of a kind.
    """
    for node in exported.graph.nodes:
        shape = getattr(node.meta.get("val"), "shape", ())
        if any(isinstance(size, torch.SymInt) for size in shape):
            trace = node.meta.get("stack_trace") or ""
            places = re.findall(r'File "(.+)", line (\d+), in .+\n *(.+)', trace)
            line = " at {}:{}: {}".format(*places[-1]) if places else ""
            raise NotExportable(
                f"{CANNOT_CAPTURE}: the shape of what {node.target} puts out depends on the "
                f"data{line}"
            )


def read(exported: ExportedProgram) -> Program:
    """Finds the sites and the operators of what was captured, now or in a file."""
    parameters = {
        spec.arg.name: spec.target
        for spec in exported.graph_signature.input_specs
        if spec.target is not None
    }
    weights = _sites_by_weight(exported.graph, parameters)
    nodes: dict[Site, tuple[str, ...]] = {}
    for node in exported.graph.nodes:
        site = _site_of(node, parameters, weights)
        if site is not None:
            nodes[site] = (*nodes.get(site, ()), node.name)
    operators = tuple(
        _operator(node, _site_of(node, parameters, weights), parameters)
        for graph in _graphs(exported)
        for node in graph.nodes
        if node.op == "call_function" and operator_name(node) not in VIEWS
    )
    return Program(exported, _fingerprint(exported), tuple(nodes), weights, nodes, operators)


def _graphs(exported: ExportedProgram) -> Iterator[fx.Graph]:
    """The network's graph, and those of blocks inside it such as `with torch.autocast(...)`."""
    for module in exported.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            yield module.graph


def operator_name(node: fx.Node) -> str:
    """ "conv2d" for `aten.conv2d.default`."""
    return str(getattr(node.target, "__name__", node.target)).split(".")[0]


def _sites_by_weight(graph: fx.Graph, parameters: Mapping[str, str]) -> dict[str, Site]:
    """Every weight's site: its name without the word "weight", unless another weight has that."""
    found: dict[str, Site] = {}
    paths: set[str] = set()
    for node in graph.nodes:
        kind, weight = _weight_of(node, parameters)
        if kind is None or weight is None or weight in found:
            continue
        short = weight.removesuffix("weight").rstrip("._")
        path = short if short and short not in paths else weight
        paths.add(path)
        found[weight] = Site(path, kind)
    return found


def _site_of(
    node: fx.Node, parameters: Mapping[str, str], weights: Mapping[str, Site]
) -> Site | None:
    _, weight = _weight_of(node, parameters)
    return weights.get(weight) if weight is not None else None


def _weight_of(node: fx.Node, parameters: Mapping[str, str]) -> tuple[LayerKind | None, str | None]:
    """The kind of layer that an operator is, and the name of its weight; None where it has none."""
    if node.op != "call_function":
        return None, None
    name = operator_name(node)
    if name in RECURRENT:
        owned = [_parameter(leaf, parameters) for leaf in pytree.tree_leaves(node.args)]
        weights = [weight for weight in owned if weight and ".weight_" in f".{weight}"]
        # The weights of all gates and directions are one layer, called like its module.
        return LayerKind.RECURRENT, weights[0].rpartition(".")[0] or weights[0] if weights else None
    if name not in WEIGHTED:
        return None, None
    kind, position = WEIGHTED[name]
    if kind is LayerKind.CONVOLUTION and _is_depthwise(node):
        kind = LayerKind.DEPTHWISE
    return kind, _parameter(node.args[position], parameters)


def _parameter(argument: Any, parameters: Mapping[str, str]) -> str | None:
    """The name of the parameter that an argument is, or is a view of."""
    while isinstance(argument, fx.Node) and operator_name(argument) in VIEWS and argument.args:
        argument = argument.args[0]
    if isinstance(argument, fx.Node) and argument.op == "placeholder":
        return parameters.get(argument.name)
    return None


def _is_depthwise(node: fx.Node) -> bool:
    """Whether every channel is filtered on its own; one input channel is an ordinary layer."""
    source, weight = node.args[:2]
    assert isinstance(source, fx.Node)
    assert isinstance(weight, fx.Node)
    channel_axis = 1 - weight.meta["val"].ndim
    channels = int(source.meta["val"].shape[channel_axis])
    return channels > 1 and int(weight.meta["val"].shape[1]) == 1


def _operator(node: fx.Node, site: Site | None, parameters: Mapping[str, str]) -> Operator:
    """Counts one operator's work from the shapes that the capture recorded."""
    arguments = [leaf for leaf in pytree.tree_leaves(node.args) if isinstance(leaf, fx.Node)]
    weights = sum(_elements(leaf) for leaf in arguments if _parameter(leaf, parameters))
    moved = sum(_elements(leaf) for leaf in arguments if not _parameter(leaf, parameters))
    fused = operator_name(node) in FUSED
    return Operator(
        name=operator_name(node),
        site=site,
        macs=_macs(node, weights),
        weights=0 if fused else weights,
        activations=0 if fused else moved + _elements(node),
    )


def _elements(node: fx.Node) -> int:
    tensors = pytree.tree_leaves(node.meta.get("val"))
    return sum(tensor.numel() for tensor in tensors if isinstance(tensor, torch.Tensor))


def _macs(node: fx.Node, weights: int) -> int:
    name = operator_name(node)
    shapes = [
        tuple(int(size) for size in leaf.meta["val"].shape)
        for leaf in node.args
        if isinstance(leaf, fx.Node) and isinstance(leaf.meta.get("val"), torch.Tensor)
    ]
    if name in ("conv1d", "conv2d", "conv3d"):
        return _elements(node) * math.prod(shapes[1][1:])
    if name.startswith("conv_transpose"):
        return math.prod(shapes[0]) * math.prod(shapes[1][1:])
    if name in ("linear", "matmul", "mm", "bmm"):
        return _elements(node) * shapes[0][-1]
    if name in ("addmm", "baddbmm"):
        return _elements(node) * shapes[1][-1]
    if name == "scaled_dot_product_attention":
        query, key, value = shapes[:3]
        return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    if name in RECURRENT:
        # Every weight meets every time step once.
        return weights * math.prod(shapes[0][:-1])
    return 0


def _fingerprint(exported: ExportedProgram) -> str:
    name = hashlib.sha256(str(exported.call_spec).encode())
    for graph in _graphs(exported):
        name.update(str(graph).encode())
        for node in graph.nodes:
            if node.op == "output":
                # Computes nothing; what it refers to is among the others.
                continue
            for value in pytree.tree_leaves(node.meta.get("val")):
                if isinstance(value, torch.Tensor):
                    name.update(f"{node.name} {tuple(value.shape)} {value.dtype}".encode())
    tensors = {**exported.state_dict, **exported.constants}
    for key in sorted(tensors):
        value = tensors[key]
        name.update(key.encode())
        if isinstance(value, torch.Tensor):
            flat = value.detach().cpu().contiguous().view(-1)
            name.update(flat.view(torch.uint8).numpy().data)
    return name.hexdigest()
