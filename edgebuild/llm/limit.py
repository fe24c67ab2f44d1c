"""A limit on a decoder's bytes, and what it leaves for the matrices."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from edgebuild.llm.mix import KEPT
from edgebuild.llm.store import stored_size
from edgebuild.vocabulary.decoder import Decoder, Role
from edgebuild.vocabulary.units import Bytes

# What always stays as it is.
APART = (Role.VECTOR, Role.ROUTER)
NONE = Bytes(0)


class Counted(StrEnum):
    """Which bytes are counted: those of the file, or those that one token reads."""

    STORED = "stored"
    READ = "read"


@dataclass(frozen=True)
class Limit:
    """So many bytes, of which some are taken by what has no choice."""

    size: Bytes
    counted: Counted = Counted.STORED
    apart: Bytes = NONE

    @classmethod
    def of(cls, decoder: Decoder, size: Bytes, counted: Counted = Counted.STORED) -> Limit:
        """With what the norms, biases and routers of a decoder take."""
        apart = [each for each in decoder.weights if each.role in APART]
        if counted is Counted.STORED:
            taken = sum(each.count * stored_size(each, KEPT) for each in apart)
        else:
            taken = sum(each.read * KEPT.size(each.outputs, each.inputs) for each in apart)
        return cls(size, counted, Bytes(taken))

    @property
    def left(self) -> Bytes:
        """For what has a choice."""
        return Bytes(max(self.size - self.apart, 0))
