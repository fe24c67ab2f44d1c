"""Reads a network's layers as shapes: what each one's speed depends on, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from edgebuild.capture import WEIGHTED, operator_name
from edgebuild.vocabulary.offer import LayerShape
from edgebuild.vocabulary.precision import LayerKind
from edgebuild.vocabulary.program import Program, Site

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def layer_shapes(program: Program) -> dict[str, LayerShape]:
    """The shape of each layer by its site's path, where it runs first; recurrent ones are left out.

    A recurrence is as slow as its sequence of states, which no single layer tells.
    """
    return {path: runs[0] for path, runs in layer_runs(program).items()}


def layer_runs(program: Program) -> dict[str, tuple[LayerShape, ...]]:
    """The shapes that each layer runs on, one for each time; a batch of n counts as n times."""
    nodes = {node.name: node for node in program.exported.graph.nodes}
    return {
        site.path: tuple(shape for name in names for shape in _runs(nodes[name], site))
        for site, names in program.nodes.items()
        if site.kind is not LayerKind.RECURRENT
    }


def _runs(node: fx.Node, site: Site) -> Iterator[LayerShape]:
    position = WEIGHTED[operator_name(node)][1]
    arguments = _arguments(node)
    weight = _dimensions(node.args[position])
    if site.kind is LayerKind.EMBEDDING:
        tokens = math.prod(_dimensions(arguments["indices"]))
        rows, columns = weight
        yield LayerShape(site.kind, rows, columns, (tokens,))
    elif site.kind is LayerKind.LINEAR:
        yield _linear(node, weight)
    else:
        source = _dimensions(arguments["input"])
        rank = len(weight) - 2
        batch = source[0] if len(source) == rank + 2 else 1
        yield from [_convolution(site.kind, weight, source[-rank:], arguments)] * batch


def _arguments(node: fx.Node) -> dict[str, Any]:
    """What the operator was called with, by its parameters' names, defaults included."""
    parameters = node.target._schema.arguments  # type: ignore[union-attr]
    defaults = {entry.name: entry.default_value for entry in parameters}
    positional = zip((entry.name for entry in parameters), node.args, strict=False)
    return {**defaults, **dict(positional), **node.kwargs}


def _dimensions(argument: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in argument.meta["val"].shape)


def _linear(node: fx.Node, weight: tuple[int, ...]) -> LayerShape:
    """`linear` stores its weight by outputs and inputs, a matrix product by inputs and outputs."""
    name = operator_name(node)
    inputs, outputs = weight[::-1] if name == "linear" else weight[-2:]
    source = _dimensions(node.args[1 if name == "addmm" else 0])
    # One row without tokens is a product of its own to runtimes: of a vector, not of a matrix.
    is_row = len(source) <= 2 and math.prod(source[:-1]) == 1
    extent = () if is_row else (math.prod(source[:-1]),)
    return LayerShape(LayerKind.LINEAR, inputs, outputs, extent)


def _convolution(
    kind: LayerKind,
    weight: tuple[int, ...],
    extent: tuple[int, ...],
    arguments: Mapping[str, Any],
) -> LayerShape:
    groups, kernel = int(arguments["groups"]), weight[2:]
    widths = (weight[1] * groups, weight[0])
    inputs, outputs = (weight[0], weight[1] * groups) if kind is LayerKind.TRANSPOSED else widths
    stride, dilation = (_each(arguments[word], kernel) for word in ("stride", "dilation"))
    return LayerShape(
        kind,
        inputs,
        outputs,
        extent,
        kernel,
        stride,
        _padding(arguments["padding"], kernel, dilation),
        dilation,
        groups,
    )


def _each(value: int | list[int], kernel: tuple[int, ...]) -> tuple[int, ...]:
    """One number for each axis, where one may stand for all."""
    listed = [value] if isinstance(value, int) else value
    return tuple(listed) if len(listed) == len(kernel) else tuple(listed) * len(kernel)


def _padding(
    value: str | int | list[int], kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[int, ...]:
    if value == "valid":
        return (0,) * len(kernel)
    if isinstance(value, str):
        # "same" pads an even kernel by one more on one side, which is left out here.
        return tuple(step * (size - 1) // 2 for size, step in zip(kernel, dilation, strict=True))
    return _each(value, kernel)


def module_of(shape: LayerShape) -> nn.Module:
    """A layer of this shape, with a bias and random weights."""
    if shape.kind is LayerKind.LINEAR:
        return nn.Linear(shape.inputs, shape.outputs)
    if shape.kind is LayerKind.EMBEDDING:
        return nn.Embedding(shape.inputs, shape.outputs)
    classes = TRANSPOSED if shape.kind is LayerKind.TRANSPOSED else CONVOLUTIONS
    layer: nn.Module = classes[len(shape.kernel) - 1](
        shape.inputs,
        shape.outputs,
        shape.kernel,  # type: ignore[arg-type]
        shape.stride,  # type: ignore[arg-type]
        shape.padding,  # type: ignore[arg-type]
        dilation=shape.dilation,  # type: ignore[arg-type]
        groups=shape.groups,
    )
    return layer


def input_of(shape: LayerShape) -> torch.Tensor:
    """A random input of the layer, with a batch of one: (1, tokens…, inputs) for linear layers,
    (1, inputs, …) for convolutions, indices of (1, tokens) for embeddings."""
    if shape.kind is LayerKind.EMBEDDING:
        return torch.randint(0, shape.inputs, (1, *shape.extent))
    if shape.kind is LayerKind.LINEAR:
        return torch.randn(1, *shape.extent, shape.inputs)
    return torch.randn(1, shape.inputs, *shape.extent)


def resized(shape: LayerShape, inputs: int, outputs: int) -> LayerShape:
    """The layer with other widths: a depthwise one has a group a channel, others keep theirs.

    Raises:
        ValueError: widths that the groups do not divide.
    """
    groups = inputs if shape.kind is LayerKind.DEPTHWISE else shape.groups
    if inputs % groups or outputs % groups:
        raise ValueError(f"{groups} groups divide no {inputs} inputs and {outputs} outputs")
    return replace(shape, inputs=inputs, outputs=outputs, groups=groups)
