"""What can be chosen at every part and layer of a network, and what choices make of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from edgebuild.search.layers import resized
from edgebuild.vocabulary.offer import Choice, LayerShape, Offer, Part
from edgebuild.vocabulary.precision import LayerKind, Precision
from edgebuild.vocabulary.units import Bytes, Seconds

NO_TIME = Seconds(0.0)

Shapes = tuple[LayerShape, ...]


@dataclass(frozen=True)
class Weighed:
    """An offer, and what it alone would lose: KL of the outputs, in nats."""

    offer: Offer
    loss: float


@dataclass(frozen=True)
class Menu:
    """Everything that can be chosen from, for one format.

    Attributes:
        layers: what stands at each layer's path, in the order of execution.
        offers: what methods offer.
        precisions: what each layer may be computed in, with the losses in nats.
        seconds: what a layer takes.
        glue: what the weightless operators behind each layer take.
        fixed: what an inference takes besides.
        conversion: what it takes to quantize or dequantize an element.
    """

    layers: Mapping[str, Shapes]
    offers: tuple[Weighed, ...]
    precisions: Mapping[str, Mapping[Precision, float]]
    seconds: Callable[[LayerShape, Precision], Seconds]
    glue: Mapping[str, Seconds] = field(default_factory=dict)
    fixed: Seconds = NO_TIME
    conversion: Seconds = NO_TIME


@dataclass(frozen=True)
class Limits:
    """What a plan must keep: seconds, bytes of weights, bytes of weights with the activations of
    any one layer, and nats that may be lost; infinite where nothing is wished."""

    latency: float = math.inf
    storage: float = math.inf
    memory: float = math.inf
    loss: float = math.inf


@dataclass(frozen=True)
class Plan:
    """What is picked, and what it should come to; `losses` are in nats by form."""

    reshaped: tuple[tuple[Part, Choice], ...]
    precisions: Mapping[str, Precision]
    latency: Seconds
    storage: Bytes
    memory: Bytes
    losses: Mapping[str, float]


def offers_of(menu: Menu, reshaped: Iterable[tuple[Part, Choice]]) -> list[Offer]:
    """The offers of the menu that changes to a network are made of."""
    chosen = set(reshaped)
    offers = [weighed.offer for weighed in menu.offers]
    return [offer for offer in offers if (offer.part, offer.choice) in chosen]


def settle(menu: Menu, made: Sequence[Offer]) -> Menu:
    """The menu when these offers are taken: only precisions are open."""
    removed = frozenset[str]().union(*(offer.removed for offer in made))
    layers = {
        path: shapes_after(path, shapes, made)
        for path, shapes in menu.layers.items()
        if path not in removed
    }
    glue = {
        path: glue_behind(menu, path, shapes)
        for path, shapes in layers.items()
        if path in menu.glue
    }
    return replace(menu, layers=layers, offers=(), glue=glue)


def shapes_after(path: str, shapes: Shapes, taken: Sequence[Offer]) -> Shapes:
    """What stands at a path after offers: widths lose what each alone would take from them."""
    first, last = shapes[0], shapes[-1]
    inputs = first.inputs - sum(first.inputs - o.inputs.get(path, first.inputs) for o in taken)
    outputs = last.outputs - sum(last.outputs - o.outputs.get(path, last.outputs) for o in taken)
    for offer in taken:
        shapes = offer.replaced.get(path, shapes)
    if len(shapes) == 1:
        return (resized(shapes[0], max(inputs, 1), max(outputs, 1)),)
    head, *middle, tail = shapes
    # A depthwise layer puts out as many channels as it reads, whatever comes after it.
    into = max(inputs, 1) if head.kind is LayerKind.DEPTHWISE else head.outputs
    head = resized(head, max(inputs, 1), into)
    tail = resized(tail, middle[-1].outputs if middle else into, max(outputs, 1))
    return (head, *middle, tail)


def glue_behind(menu: Menu, path: str, shapes: Shapes) -> Seconds:
    """Weightless operators take as long as there are channels."""
    return Seconds(
        menu.glue.get(path, 0.0) * shapes[-1].outputs / max(menu.layers[path][-1].outputs, 1)
    )
