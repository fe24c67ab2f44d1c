"""How the weights of a language model are stored: floats, or few bits with a scale a block."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgebuild.vocabulary.errors import InvalidQuantity
from edgebuild.vocabulary.units import Bytes

INTEGER_BITS = (2, 4, 8)
FLOAT_BITS = (16, 32)
BLOCKS = (16, 32, 64, 128, 256)
_NAME = re.compile(r"(fp|int)(\d+)(?:-g(\d+))?(-asym)?")


@dataclass(frozen=True)
class WeightFormat:
    """The layout of MatMulNBits and GatherBlockQuantized, or plain floats.

    Along a row, `block` weights share a scale, and a zero point of as many bits as a weight where
    they are not symmetric. A block of 0 says floats.
    """

    bits: int
    block: int = 0
    is_symmetric: bool = True
    scale_bits: int = 16

    def __post_init__(self) -> None:
        blocks = (0,) if self.is_float else BLOCKS
        for word, value, known in (
            ("bits", self.bits, FLOAT_BITS + INTEGER_BITS),
            ("block", self.block, blocks),
        ):
            if value not in known:
                listed = ", ".join(map(str, known))
                raise InvalidQuantity(f"{word} {value}: there are only {listed}")

    @classmethod
    def parse(cls, text: str) -> WeightFormat:
        """Reads "fp16", "int8", "int4-g128" or "int4-g32-asym"; a block of 32 may stay unsaid.

        Raises:
            InvalidQuantity: the text is no such format.
        """
        found = _NAME.fullmatch(text)
        if not found or (found[1] == "fp" and (found[3] or found[4])):
            raise InvalidQuantity(
                f"{text!r} is no weight format: write fp16, fp32, int8, int4-g128, int4-g32-asym …"
            )
        kind, bits, block, asymmetric = found.groups()
        if int(bits) not in (FLOAT_BITS if kind == "fp" else INTEGER_BITS):
            raise InvalidQuantity(f"{text!r} is no weight format: there is no {kind}{bits}")
        return cls(int(bits), int(block or 32) * (kind == "int"), not asymmetric)

    @property
    def is_float(self) -> bool:
        return self.bits in FLOAT_BITS

    def __str__(self) -> str:
        if self.is_float:
            return f"fp{self.bits}"
        return f"int{self.bits}-g{self.block}" + ("" if self.is_symmetric else "-asym")

    def blocks(self, inputs: int) -> int:
        """How many blocks a row has, the last one padded."""
        return -(-inputs // self.block)

    def zero_bytes(self, inputs: int) -> int:
        """Bytes of a row's zero points, packed as the weights are."""
        return 0 if self.is_symmetric else -(-self.blocks(inputs) * self.bits // 8)

    def size(self, outputs: int, inputs: int) -> Bytes:
        """Bytes of a matrix with its scales and zero points."""
        if self.is_float:
            return Bytes(outputs * inputs * self.bits // 8)
        blocks = self.blocks(inputs)
        row = blocks * (self.block * self.bits + self.scale_bits) // 8 + self.zero_bytes(inputs)
        return Bytes(outputs * row)
