"""Moves a factor for each channel out of one operator and into the layers that read it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from edgebuild.capture import operator_name
from edgebuild.methods._round_layers import Layer

# Operators that leave every channel where it is and pass a positive factor on: f(a·x) = a·f(x).
# ReLU6 and hardtanh are none, because they cut off at a number.
ELEMENTWISE = {
    "alias", "clone", "contiguous", "detach", "dropout", "dropout_", "leaky_relu", "leaky_relu_",
    "relu", "relu_",
}  # fmt: skip
# The same, of the second dimension of (batch, channels, …).
SPATIAL = {
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "avg_pool1d", "avg_pool2d", "max_pool1d",
    "max_pool2d", "upsample_bilinear2d", "upsample_nearest2d",
}  # fmt: skip
RESHAPING = {
    "_unsafe_view", "flatten", "reshape", "squeeze", "unflatten", "unsqueeze", "view",
}  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """A layer that reads the channels, each of them `spread` times in a row."""

    layer: Layer
    spread: int

    def ranges(self) -> Tensor:
        """The largest weight that each channel meets, (channels,)."""
        rows = _by_input(self.layer)
        return rows.abs().amax(dim=(1, 3)).reshape(-1, self.spread).amax(dim=1)

    def scale(self, factors: Tensor) -> None:
        """Multiplies what each channel meets, by (channels,)."""
        rows = _by_input(self.layer)
        spread = factors.repeat_interleave(self.spread).reshape(len(rows), 1, -1, 1)
        self.layer.store((rows * spread).flatten(2))


def _by_input(layer: Layer) -> Tensor:
    """The weights as (groups, outputs of a group, inputs of a group, kernel)."""
    rows = layer.rows()
    return rows.reshape(*rows.shape[:2], -1, layer.kernel_size)


def output_ranges(layer: Layer) -> Tensor:
    """The largest weight of each output channel, (outputs,)."""
    return layer.rows().abs().amax(dim=2).flatten()


def scale_outputs(layer: Layer, factors: Tensor) -> None:
    """Multiplies every output channel, by (outputs,)."""
    rows = layer.rows()
    layer.store(rows * factors.reshape(*rows.shape[:2], 1))
    if layer.bias is not None:
        with torch.no_grad():
            layer.bias.mul_(factors)


def readers_of(node: fx.Node, axis: int, layers: Mapping[str, Layer]) -> list[Reader]:
    """The layers that the channels of a node end in; none where anything else sees them."""
    try:
        return list(_readers(node, axis, 1, layers))
    except _ElsewhereError:
        return []


class _ElsewhereError(Exception):
    """The channels reach an operator that a factor does not pass."""


def _readers(
    node: fx.Node, axis: int, spread: int, layers: Mapping[str, Layer]
) -> Iterator[Reader]:
    for user in node.users:
        layer = layers.get(user.name)
        if layer is not None and layer.source_of(user) is node:
            if not layer.is_alone or axis != layer.channel_axis(node.meta["val"].ndim):
                raise _ElsewhereError
            yield Reader(layer, spread)
        else:
            yield from _readers(user, *_after(user, node, axis, spread), layers)


def _after(user: fx.Node, node: fx.Node, axis: int, spread: int) -> tuple[int, int]:
    """Where the channels lie in the user's values, and how often in a row each of them."""
    name = operator_name(user)
    before, after = (tuple(int(n) for n in one.meta["val"].shape) for one in (node, _one(user)))
    if name in ELEMENTWISE or (name in SPATIAL and axis == 1):
        return axis, spread
    if name in RESHAPING:
        return _reshaped(before, after, axis, spread)
    if name == "transpose":
        one, other = (int(d) % len(before) for d in user.args[1:3])  # type: ignore[arg-type]
        return {one: other, other: one}.get(axis, axis), spread
    if name == "permute":
        order = [int(d) % len(before) for d in user.args[1]]  # type: ignore[arg-type, union-attr]
        return order.index(axis), spread
    if name == "mean" and len(user.args) > 1 and user.args[1] is not None:
        gone = {int(d) % len(before) for d in user.args[1]}  # type: ignore[arg-type, union-attr]
        if axis not in gone:
            keeps = len(after) == len(before)
            return axis - (0 if keeps else sum(d < axis for d in gone)), spread
    if name == "select" and int(user.args[1]) % len(before) != axis:  # type: ignore[arg-type]
        return axis - (int(user.args[1]) % len(before) < axis), spread  # type: ignore[arg-type]
    raise _ElsewhereError


def _one(user: fx.Node) -> fx.Node:
    if not isinstance(user.meta.get("val"), torch.Tensor):
        raise _ElsewhereError
    return user


def _reshaped(
    before: Sequence[int], after: Sequence[int], axis: int, spread: int
) -> tuple[int, int]:
    """Follows an axis through a change of shape that keeps the order of all elements."""
    outside, inside = math.prod(before[:axis]), math.prod(before[axis + 1 :])
    for new, size in enumerate(after):
        times, rest = divmod(size, before[axis])
        if (
            rest == 0
            and math.prod(after[:new]) == outside
            and times * math.prod(after[new + 1 :]) == inside
        ):
            return new, spread * times
    raise _ElsewhereError
