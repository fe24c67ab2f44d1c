"""A precision for the layers of a decoder, and another one for its head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from edgebuild.vocabulary.decoder import Role, Weights
from edgebuild.vocabulary.errors import InvalidQuantity
from edgebuild.vocabulary.weight_format import WeightFormat

KEPT = WeightFormat(32)


class Layouts(Protocol):
    """Says how each tensor is stored."""

    def of(self, weights: Weights, name: str, /) -> WeightFormat: ...


@dataclass(frozen=True)
class Mix:
    """`body` is the layers' and the embedding's; an embedding that is the head, too, is a head."""

    body: WeightFormat
    head: WeightFormat

    @classmethod
    def parse(cls, text: str) -> Mix:
        """Reads "int4-g32", or "int4-g32+int8-head".

        Raises:
            InvalidQuantity: the text is no such mix.
        """
        body, _, head = text.partition("+")
        if head and not head.endswith("-head"):
            raise InvalidQuantity(f"{text!r} is no precision: write it as int4-g32+int8-head")
        first = WeightFormat.parse(body)
        return cls(first, WeightFormat.parse(head.removesuffix("-head")) if head else first)

    def __str__(self) -> str:
        if self.head == self.body:
            return str(self.body)
        # A block of 32 may stay unsaid, and names are long enough.
        return f"{self.body}+{str(self.head).removesuffix('-g32')}-head"

    def of(self, weights: Weights, name: str = "", /) -> WeightFormat:
        """How tensors are stored; norms, biases and routers always as floats of four bytes."""
        by_role: Mapping[Role, WeightFormat] = {
            Role.MATRIX: self.body,
            Role.EMBEDDING: self.body,
            Role.HEAD: self.head,
        }
        return by_role.get(weights.role, KEPT)


# From the most precise to the smallest.
MIXES = tuple(
    map(
        Mix.parse,
        (
            *("fp32", "fp16", "int8-g32", "int4-g32+int8-head", "int4-g32"),
            *("int4-g128+int8-head", "int4-g128", "int2-g32-asym"),
        ),
    )
)
