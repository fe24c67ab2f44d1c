"""A decoder-only language model by its shapes: what is stored, and what one token reads of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a tensor is for, which decides how it may be stored.

    Vectors (norms and biases) and routers stay floats: they are small, and errors there are dear.
    """

    EMBEDDING = "embedding"
    HEAD = "head"
    MATRIX = "matrix"
    ROUTER = "router"
    VECTOR = "vector"


@dataclass(frozen=True)
class Weights:
    """Tensors of one shape, one for each layer and expert.

    Attributes:
        name: as the checkpoint calls it, with `{layer}` and `{expert}` for the numbers.
        outputs: rows; of a vector, its length.
        inputs: columns; 1 of a vector.
        layers: the layers that have it; `range(1)` where it is there once.
        active_experts: how many of `experts` one token runs through.
        norm: the norm whose outputs it multiplies, named likewise; empty where none is before it.
    """

    name: str
    role: Role
    outputs: int
    inputs: int = 1
    layers: range = range(1)
    experts: int = 1
    active_experts: int = 1
    norm: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.outputs,) if self.role is Role.VECTOR else (self.outputs, self.inputs)

    @property
    def count(self) -> int:
        """How many tensors of this shape there are."""
        return len(self.layers) * self.experts

    @property
    def read(self) -> int:
        """How many of them one token reads whole; of an embedding it reads a single row."""
        return 0 if self.role is Role.EMBEDDING else len(self.layers) * self.active_experts

    @property
    def elements(self) -> int:
        return self.outputs * self.inputs

    def names(self) -> Iterator[tuple[str, str]]:
        """Every tensor's name, with that of the norm before it."""
        for layer in self.layers:
            norm = self.norm.format(layer=layer)
            for expert in range(self.experts):
                yield self.name.format(layer=layer, expert=expert), norm


# Tokens of a longer conversation, and a cache that phones have room for.
USUAL_CONTEXT = 4096


@dataclass(frozen=True)
class Decoder:
    """A model's shapes.

    Attributes:
        family: the model type, as in "qwen2".
        cached: elements of the KV cache that one token leaves, over all layers.
        activations: the most elements that one token has at once between two operators.
        heads: attention heads, each with a row of scores over the whole context.
        attended: multiply-accumulates with each token of the context, over all layers.
        norm_offset: what a norm adds to its weight before it multiplies.
        longest_context: what it was trained for; None where the configuration does not say.
        is_tied: whether the head is the embedding, stored once.
    """

    name: str
    family: str
    layers: int
    hidden: int
    vocabulary: int
    weights: tuple[Weights, ...]
    cached: int
    activations: int
    heads: int
    attended: int
    norm_offset: float
    longest_context: int | None
    is_tied: bool

    @property
    def usual_context(self) -> int:
        """Tokens to plan for where nobody says how many: never more than it was trained for."""
        return min(USUAL_CONTEXT, self.longest_context or USUAL_CONTEXT)

    @property
    def parameters(self) -> int:
        return sum(each.elements * each.count for each in self.weights)

    @property
    def active_parameters(self) -> int:
        """Those that one token is multiplied with."""
        return sum(each.elements * each.read for each in self.weights)
