"""The layers of a captured network whose weights can be rounded, and their weights as rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from edgebuild.capture import WEIGHTED, operator_name
from edgebuild.vocabulary.precision import LayerKind
from edgebuild.vocabulary.program import Program, Site

ROUNDED = (LayerKind.CONVOLUTION, LayerKind.DEPTHWISE, LayerKind.TRANSPOSED, LayerKind.LINEAR)
# Operators that multiply with a matrix of (inputs, outputs) instead of (outputs, inputs).
TURNED = ("matmul", "mm", "addmm")


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer and the operator that computes it; `weight` and `bias` are the network's own.

    `is_alone` says that nothing else in the network reads the weight or the bias.
    """

    site: Site
    node: fx.Node
    weight: nn.Parameter
    bias: nn.Parameter | None
    groups: int
    is_alone: bool

    def source_of(self, node: fx.Node) -> fx.Node:
        """The node whose values are multiplied with the weights; `node` is any graph's of it."""
        source = node.args[1 if operator_name(node) == "addmm" else 0]
        assert isinstance(source, fx.Node)
        return source

    def rows(self) -> Tensor:
        """The weights as (groups, outputs of a group, inputs of a group × kernel)."""
        weight = self.weight.detach()
        if operator_name(self.node) in TURNED:
            return weight.T[None]
        if self.site.kind is not LayerKind.TRANSPOSED:
            return weight.reshape(self.groups, len(weight) // self.groups, -1)
        inputs, outputs = len(weight) // self.groups, weight.shape[1]
        apart = weight.reshape(self.groups, inputs, outputs, -1).transpose(1, 2)
        return apart.reshape(self.groups, outputs, -1)

    def store(self, rows: Tensor) -> None:
        """Writes weights in the shape of `rows` into the network."""
        if operator_name(self.node) in TURNED:
            found = rows[0].T
        elif self.site.kind is not LayerKind.TRANSPOSED:
            found = rows
        else:
            inputs, outputs = len(self.weight) // self.groups, self.weight.shape[1]
            found = rows.reshape(self.groups, outputs, inputs, -1).transpose(1, 2)
        with torch.no_grad():
            self.weight.copy_(found.reshape(self.weight.shape))

    @property
    def kernel_size(self) -> int:
        """How many weights an input channel has in one row."""
        return 1 if self.site.kind is LayerKind.LINEAR else math.prod(self.weight.shape[2:])

    def channel_axis(self, dimensions: int) -> int:
        """Where an input or output of so many dimensions has its channels."""
        behind = 1 if self.site.kind is LayerKind.LINEAR else self.weight.ndim - 1
        return dimensions - behind

    @property
    def can_shift(self) -> bool:
        """Whether it has a bias of its own that can take up a mean error."""
        return self.bias is not None and self.bias.ndim == 1 and self.is_alone

    @property
    def has_columns(self) -> bool:
        """Whether its input can be laid out so that the layer is one product of matrices."""
        return operator_name(self.node) in (*TURNED, "linear", "conv1d", "conv2d")

    def columns(self, value: Tensor) -> Tensor:
        """What the rows are multiplied with, (groups, inputs of a group × kernel, positions)."""
        if self.site.kind is LayerKind.LINEAR:
            return value.reshape(-1, value.shape[-1]).T[None]
        stride = self._extent(3, 1)
        padding = self._extent(4, 0)
        dilation = self._extent(5, 1)
        kernel = (*(1,) * (4 - self.weight.ndim), *self.weight.shape[2:])
        image = value if self.weight.ndim == 4 else value.unsqueeze(-2)
        if self._argument(4, 0) == "same":
            image = functional.pad(image, _same(kernel, dilation))
        found = functional.unfold(image, kernel, dilation, padding, stride)
        apart = found.reshape(len(found), self.groups, -1, found.shape[-1])
        return apart.permute(1, 2, 0, 3).flatten(2)

    def _extent(self, position: int, default: int) -> tuple[int, int]:
        """An argument of a convolution for height and width; padding that has a name is none here.

        A series is an image of height one, which is neither padded nor skipped over.
        """
        given = self._argument(position, default)
        numbers = [default] if isinstance(given, str) else given
        numbers = [numbers] if isinstance(numbers, int) else numbers
        return (default if self.weight.ndim == 3 else int(numbers[0])), int(numbers[-1])

    def _argument(self, position: int, default: Any) -> Any:
        return self.node.args[position] if len(self.node.args) > position else default


def _same(kernel: tuple[int, ...], dilation: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, right, top and bottom padding that keeps the size; the odd one comes last."""
    high, wide = (step * (size - 1) for size, step in zip(kernel, dilation, strict=True))
    return wide // 2, wide - wide // 2, high // 2, high - high // 2


def layers_of(program: Program) -> Mapping[str, Layer]:
    """The layers whose weights stand in the network as they are computed with, by their node.

    A layer that is called twice is named by its first call. Left out are weights that are sliced,
    tied through a view, or not in fp32.
    """
    exported = program.exported
    names = {spec.arg.name: spec.target for spec in exported.graph_signature.input_specs}
    nodes = {node.name: node for node in exported.graph.nodes}
    shared = _shared(exported.state_dict)
    found = {}
    for site, calls in program.nodes.items():
        node = nodes[calls[0]]
        if site.kind not in ROUNDED:
            continue
        position = WEIGHTED[operator_name(node)][1]
        given = node.args[position]
        weight = exported.state_dict.get(names.get(getattr(given, "name", ""), ""))
        if not isinstance(weight, nn.Parameter) or weight.dtype is not torch.float32:
            continue
        if weight.ndim != 2 and operator_name(node) in TURNED:
            continue
        added = node.args[0] if operator_name(node) == "addmm" else _bias_of(node)
        bias = exported.state_dict.get(names.get(getattr(added, "name", ""), ""))
        read = [one for one in (given, added) if isinstance(one, fx.Node)]
        found[node.name] = Layer(
            site=site,
            node=node,
            weight=weight,
            bias=bias if isinstance(bias, nn.Parameter) else None,
            groups=_groups(node, weight, site.kind),
            is_alone=all(len(one.users) == 1 for one in read)
            and not {id(weight), id(bias)} & shared
            and (added is None or isinstance(bias, nn.Parameter)),
        )
    return found


def _bias_of(node: fx.Node) -> Any:
    has_bias = operator_name(node) not in TURNED and len(node.args) > 2
    return node.args[2] if has_bias else None


def _groups(node: fx.Node, weight: Tensor, kind: LayerKind) -> int:
    if kind is LayerKind.LINEAR:
        return 1
    # Both kinds of convolution name their groups seventh.
    return int(node.args[6]) if len(node.args) > 6 else 1  # type: ignore[arg-type]


def _shared(state: Mapping[str, Any]) -> set[int]:
    """The tensors, by identity, that share their memory with another name's."""
    owners: dict[int, list[Tensor]] = {}
    for tensor in state.values():
        if isinstance(tensor, Tensor) and tensor.numel():
            owners.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
    return {id(tensor) for same in owners.values() if len(same) > 1 for tensor in same}
