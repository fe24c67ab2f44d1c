"""What a method offers: a choice at one part of a network, and the layers that it would leave."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from edgebuild.vocabulary.precision import LayerKind

_NUMBERS = re.compile(r"\d+")


class PartKind(StrEnum):
    """What a method changes as one: coupled channels, a block, a layer, or the whole network."""

    CHANNELS = "channels"
    BLOCK = "block"
    LAYER = "layer"
    NETWORK = "network"


@dataclass(frozen=True, order=True)
class Part:
    """A part of the network, before its layers get their precisions.

    `path` is a module's: a layer's own, a block's, or of coupled channels the first layer that
    produces them; empty for the whole network.
    """

    path: str
    kind: PartKind


NETWORK = Part("", PartKind.NETWORK)


@dataclass(frozen=True, order=True)
class Choice:
    """One thing that a method does at one place, such as `quantize` to `int8-static`."""

    method: str
    option: str

    @property
    def form(self) -> str:
        """The method and its option but for the sizes: choices of one form lose alike."""
        return f"{self.method} {_NUMBERS.sub('', self.option)}"


@dataclass(frozen=True)
class LayerShape:
    """All of a layer that its speed depends on: what a micro-benchmark of it is named by.

    `inputs` and `outputs` are channels or features (rows and columns of an embedding), `extent`
    the size of the input without batch and channels: height and width, or tokens. `kernel`,
    `stride`, `padding` and `dilation` are empty for linear layers.
    """

    kind: LayerKind
    inputs: int
    outputs: int
    extent: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1


def weights(shape: LayerShape) -> int:
    """Elements of the weight, without the bias."""
    return shape.inputs * shape.outputs // shape.groups * math.prod(shape.kernel)


def macs(shape: LayerShape) -> int:
    """Multiply-accumulates of one run, as `capture` counts them."""
    if shape.kind is LayerKind.EMBEDDING:
        return 0
    is_turned = shape.kind is LayerKind.TRANSPOSED
    positions = shape.extent if is_turned else output_extent(shape)
    return math.prod(positions) * weights(shape)


def activations(shape: LayerShape) -> int:
    """Elements that one run reads and puts out."""
    positions = macs(shape) // max(weights(shape), 1)
    return shape.inputs * math.prod(shape.extent) + shape.outputs * positions


def output_extent(shape: LayerShape) -> tuple[int, ...]:
    """The size of the output without batch and channels, of a layer that is not transposed."""
    if not shape.kernel:
        return shape.extent
    axes = zip(
        *(shape.extent, shape.kernel, shape.stride, shape.padding, shape.dilation), strict=True
    )
    return tuple(
        (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, padding, dilation in axes
    )


@dataclass(frozen=True)
class Offer:
    """One choice at one part, with the layers that it would leave there.

    Attributes:
        part: where.
        choice: what.
        outputs: the channels that layers would put out, by the layers' paths.
        inputs: the channels that layers would read, by the layers' paths.
        replaced: the layers that would stand in a layer's stead, in order.
        removed: the layers that would go.
    """

    part: Part
    choice: Choice
    outputs: Mapping[str, int] = field(default_factory=dict)
    inputs: Mapping[str, int] = field(default_factory=dict)
    replaced: Mapping[str, tuple[LayerShape, ...]] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()
