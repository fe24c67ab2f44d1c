"""Moves outlier channels of normalized activations into the weights of the layers behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from edgebuild.capture import operator_name
from edgebuild.methods._round_layers import layers_of
from edgebuild.methods._round_scaling import Reader, readers_of
from edgebuild.vocabulary.precision import LayerKind
from edgebuild.vocabulary.program import Program

# How much of the difficulty moves from activations to weights.
ALPHA = 0.5


@dataclass(frozen=True, eq=False)
class Norm:
    """A normalization with a weight for each channel, and the layers that alone read it."""

    node: fx.Node
    affine: tuple[nn.Parameter, ...]
    readers: tuple[Reader, ...]


def smooth(program: Program, rows: Sequence[tuple[Tensor, ...]]) -> None:
    """Rescales every normalization in place; the network computes what it did before.

    Xiao et al., "SmoothQuant" (arXiv 2211.10438), equation 4: a channel that reaches |x| on the
    samples and meets weights of |w| is divided by |x|^α / |w|^(1-α) in the normalization and
    multiplied in the linear layers behind.
    """
    norms = list(smoothable(program))
    reached = _reached(program, [norm.node.name for norm in norms], rows)
    for norm in norms:
        ranges = torch.stack([reader.ranges() for reader in norm.readers]).amax(dim=0)
        factors = reached[norm.node.name] ** ALPHA / ranges ** (1 - ALPHA)
        factors = torch.where(torch.isfinite(factors) & (factors > 0), factors, 1.0)
        with torch.no_grad():
            for parameter in norm.affine:
                parameter.div_(factors)
        for reader in norm.readers:
            reader.scale(factors)


def smoothable(program: Program) -> Iterator[Norm]:
    """The LayerNorms whose channels end in linear layers, and nowhere else."""
    layers = layers_of(program)
    names = program.exported.graph_signature.inputs_to_parameters
    state = program.exported.state_dict
    for node in program.exported.graph.nodes:
        if operator_name(node) != "layer_norm" or len(node.args[1]) != 1:
            continue
        given = [one for one in node.args[2:4] if isinstance(one, fx.Node)]
        readers = readers_of(node, node.meta["val"].ndim - 1, layers)
        is_linear = all(reader.layer.site.kind is LayerKind.LINEAR for reader in readers)
        if given and readers and is_linear and all(len(one.users) == 1 for one in given):
            affine = tuple(state[names[one.name]] for one in given if one.name in names)
            if len(affine) == len(given):
                yield Norm(node, affine, tuple(readers))


def _reached(
    program: Program, names: Sequence[str], rows: Sequence[tuple[Tensor, ...]]
) -> dict[str, Tensor]:
    """The largest magnitude of each channel in the last dimension of the named nodes' values."""
    watched = _Watched(program.exported.module(check_guards=False), set(names))
    with torch.no_grad():
        for row in rows:
            watched.run(*(tensor.clone() for tensor in row))
    return watched.reached


class _Watched(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, names: set[str]) -> None:
        super().__init__(module)
        self._names = names
        self.reached: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n.name in self._names:
            seen = value.abs().reshape(-1, value.shape[-1]).amax(dim=0)
            self.reached[n.name] = torch.maximum(seen, self.reached.get(n.name, seen))
        return value
