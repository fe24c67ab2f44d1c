"""Walks through a network layer by layer, exact and rounded side by side, with all samples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from edgebuild.methods._round_layers import Layer, layers_of
from edgebuild.vocabulary.program import Program

Row = tuple[Tensor, ...]
# What a layer reads or puts out, one tensor a sample: in the network as it was, and in the one
# whose earlier layers are rounded.
Visit = Callable[[Layer, Sequence[Tensor], Sequence[Tensor]], None]


def walk(program: Program, rows: Sequence[Row], before: Visit, after: Visit) -> None:
    """Stops before every layer with what it reads, and after it with what it puts out.

    The visits change the layers in place. All samples go on by one operator at a time, so that a
    layer sees what the layers before it make of them, already rounded.
    """
    layers = layers_of(program)
    module = program.exported.module(check_guards=False)
    exact = _Lanes(copy.deepcopy(module), module.graph, rows)
    rounded = _Lanes(module, module.graph, rows)
    with torch.no_grad():
        for node in module.graph.nodes:
            layer = layers.get(node.name)
            if layer is not None:
                source = layer.source_of(node)
                before(layer, exact.values(source), rounded.values(source))
            exact.run(node)
            rounded.run(node)
            if layer is not None:
                after(layer, exact.values(node), rounded.values(node))
            exact.leave(node)
            rounded.leave(node)


class _Lanes:
    """One set of weights, and every sample's values as far as they have come."""

    def __init__(self, module: fx.GraphModule, graph: fx.Graph, rows: Sequence[Row]) -> None:
        self._interpreter = fx.Interpreter(module, graph=graph)
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        # Copied: a network may write into its inputs.
        self._lanes: list[dict[fx.Node, Any]] = [
            {node: tensor.clone() for node, tensor in zip(inputs, row, strict=True)} for row in rows
        ]

    def values(self, node: fx.Node) -> list[Tensor]:
        return [lane[node] for lane in self._lanes]

    def run(self, node: fx.Node) -> None:
        if node.op not in ("placeholder", "output"):
            for lane in self._lanes:
                self._interpreter.env = lane
                lane[node] = self._interpreter.run_node(node)

    def leave(self, node: fx.Node) -> None:
        """Forgets what is not needed after this operator."""
        for lane in self._lanes:
            for used in self._interpreter.user_to_last_uses.get(node, ()):
                del lane[used]
