"""Where the arrays of a converted model lie: one data file, laid out before anything is written.

Large arrays begin at multiples of a page, as ONNX's external data want them; small ones follow each
other, or pages would be most of a small model. All can be mapped. The index names each with its
place, type, shape and hash.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from edgebuild.generate import INDEX as INDEX
from edgebuild.llm.mix import Layouts
from edgebuild.vocabulary.decoder import Decoder, Role, Weights
from edgebuild.vocabulary.errors import InvalidBundle, InvalidQuantity
from edgebuild.vocabulary.units import Bytes
from edgebuild.vocabulary.weight_format import WeightFormat

DATA = "weights.data"
SCHEMA = 1
PAGE = 4096
# Arrays from this size on begin at a page: what lies before one is then nothing beside it.
LARGE = 2**24
# The others begin where the widest of the processors' instructions reads best.
LINE = 64
# Bytes that are hashed at once.
AT_ONCE = 16_000_000


@dataclass(frozen=True)
class Piece:
    """One array in the data file; `sha256` is empty until it is written."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int
    sha256: str = ""


@dataclass(frozen=True)
class Entry:
    """One tensor of the model: codes, scales and zero points, or plain values.

    `norm` is the tensor whose outputs it multiplies, empty where none is.
    """

    name: str
    role: Role
    shape: tuple[int, ...]
    layout: WeightFormat
    pieces: tuple[Piece, ...]
    norm: str = ""

    @property
    def rows(self) -> int:
        return self.shape[0] if len(self.shape) == 2 else 1

    @property
    def inputs(self) -> int:
        return self.shape[-1]


@dataclass(frozen=True)
class Index:
    """A converted model."""

    schema_version: int
    model: str
    family: str
    made_from: str
    entries: tuple[Entry, ...]

    @property
    def size(self) -> int:
        """Bytes of the data file."""
        return end_of(self.entries)


_FORM = TypeAdapter(Index)


def dump_index(index: Index) -> bytes:
    return _FORM.dump_json(index, indent=1)


def load_index(folder: Path) -> Index:
    """The index of a converted model.

    Raises:
        InvalidBundle: there is none, or it is of another schema or corrupt.
    """
    file = folder / INDEX
    try:
        index = _FORM.validate_json(file.read_bytes())
    except OSError:
        raise InvalidBundle(f"{folder} has no {INDEX}: it is no converted model") from None
    except ValidationError:
        raise InvalidBundle(f"{file} is corrupt: convert the model again") from None
    if index.schema_version != SCHEMA:
        raise InvalidBundle(f"{file} has schema {index.schema_version}, and {SCHEMA} is read here")
    return index


def lay_out(decoder: Decoder, layouts: Layouts) -> tuple[Entry, ...]:
    """A place for every tensor.

    Raises:
        InvalidQuantity: an embedding whose rows are no whole blocks, which no kernel looks up.
    """
    entries, offset = [], 0
    for weights in decoder.weights:
        for name, norm in weights.names():
            layout = layouts.of(weights, name)
            _refuse_broken_rows(weights, layout)
            pieces = tuple(_placed(_arrays(weights, layout), offset))
            entries.append(Entry(name, weights.role, weights.shape, layout, pieces, norm))
            offset = _end(pieces[-1])
    return tuple(entries)


def stored_size(weights: Weights, layout: WeightFormat) -> Bytes:
    """Bytes that a tensor of a shape takes in the file at most, with the gaps around its arrays."""
    lengths = (array.length for array in _arrays(weights, layout))
    return Bytes(sum(_rounded_up(each, LINE) + (each >= LARGE) * PAGE for each in lengths))


def end_of(entries: Iterable[Entry]) -> int:
    return max((_end(piece) for entry in entries for piece in entry.pieces), default=0)


def hash_of(data: int, piece: Piece) -> str:
    """The SHA-256 of an array in an open data file."""
    found, at, end = hashlib.sha256(), piece.offset, _end(piece)
    while at < end:
        read = os.pread(data, min(AT_ONCE, end - at), at)
        if not read:
            break
        found.update(read)
        at += len(read)
    os.posix_fadvise(data, piece.offset, piece.length, os.POSIX_FADV_DONTNEED)
    return found.hexdigest()


def _refuse_broken_rows(weights: Weights, layout: WeightFormat) -> None:
    is_looked_up = weights.name.endswith("embed_tokens.weight")
    if is_looked_up and not layout.is_float and weights.inputs % layout.block:
        raise InvalidQuantity(
            f"a block of {layout.block} does not divide the {weights.inputs} columns of the "
            "embedding: give a smaller one"
        )


def _arrays(weights: Weights, layout: WeightFormat) -> Iterator[Piece]:
    """The arrays of a tensor, not yet in their places."""
    rows, inputs = weights.outputs, weights.inputs
    if layout.is_float:
        yield _array("values", f"float{layout.bits}", weights.shape)
        return
    blocks = layout.blocks(inputs)
    yield _array("codes", "uint8", (rows, blocks, layout.block * layout.bits // 8))
    yield _array("scales", f"float{layout.scale_bits}", (rows, blocks))
    if not layout.is_symmetric:
        yield _array("zero_points", "uint8", (rows, layout.zero_bytes(inputs)))


def _array(kind: str, dtype: str, shape: tuple[int, ...]) -> Piece:
    size = {"uint8": 1, "float16": 2, "float32": 4}[dtype]
    return Piece(kind, dtype, shape, 0, math.prod(shape) * size)


def _placed(pieces: Iterable[Piece], offset: int) -> Iterator[Piece]:
    for piece in pieces:
        unit = PAGE if piece.length >= LARGE else LINE
        placed = replace(piece, offset=_rounded_up(offset, unit))
        yield placed
        offset = _end(placed)


def _rounded_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _end(piece: Piece) -> int:
    return piece.offset + piece.length
