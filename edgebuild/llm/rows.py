"""Reads a stored tensor a few rows at a time, as floats, whatever it is stored as."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgebuild.llm._gguf_blocks import BLOCK_FORMATS
from edgebuild.llm._kernels_numpy import Floats
from edgebuild.llm.checkpoint import WHOLE, StoredTensor
from edgebuild.llm.quantize import kernels
from edgebuild.vocabulary.errors import InvalidCheckpoint

# DeepSeek's eight-bit checkpoints have a scale for each square of this many weights a side.
SQUARE = 128
SCALE_ENDING = "_scale_inv"
# Fewer rows than this that nobody asked for are read with their neighbors.
GAP = 64


@dataclass(frozen=True)
class Rows:
    """An open tensor; `scales` are those of an eight-bit one, None where there are none."""

    tensor: StoredTensor
    descriptor: int
    scales: Floats | None = None
    # The bytes of a chunk as they are read, kept for the next one.
    _raw: bytearray = field(default_factory=bytearray)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns that are read; a vector is one row."""
        return _in_rows(self.tensor.read_shape)

    def read(self, first: int, out: Floats) -> None:
        """Fills [rows, columns] from a row on.

        Raises:
            InvalidCheckpoint: the file ends before the rows do.
        """
        cut = self.tensor.cut
        if cut is WHOLE:
            self._read_whole(first, out)
            return
        rows, columns = _in_rows(self.tensor.shape)
        kept = np.arange(rows) if cut.rows is None or self._is_vector else cut.rows
        across = cut.rows if self._is_vector else cut.columns
        at = 0
        for wanted in _runs(kept[first : first + len(out)]):
            stored = np.empty((wanted[-1] + 1 - wanted[0], columns), np.float32)
            self._read_whole(int(wanted[0]), stored)
            some = stored[wanted - wanted[0]]
            out[at : at + len(some)] = some if across is None else some[:, across]
            at += len(some)

    def _read_whole(self, first: int, out: Floats) -> None:
        """Rows with all of their columns."""
        if self.tensor.reordered_heads:
            self._read_in_order(first, out)
        else:
            self._read_as_stored(first, out)
        if self.scales is not None:
            out *= _spread(self.scales, first, out.shape)
        if self.tensor.offset_by:
            out += np.float32(self.tensor.offset_by)

    @property
    def _is_vector(self) -> bool:
        return len(self.tensor.shape) < 2

    def chunks(self, weights: int) -> Iterator[tuple[int, Floats]]:
        """All rows, some at a time: the number of the first, and about so many weights.

        The array is the next chunk's, too.
        """
        count, inputs = self.shape
        step = max(1, weights // inputs)
        buffer = np.empty((min(step, count), inputs), np.float32)
        for first in range(0, count, step):
            chunk = buffer[: min(step, count - first)]
            self.read(first, chunk)
            yield first, chunk

    def _read_as_stored(self, first: int, out: Floats) -> None:
        pitch = out.shape[1] * self.tensor.length // math.prod(self.tensor.shape)
        length = len(out) * pitch
        if len(self._raw) < length:
            self._raw.extend(bytes(length - len(self._raw)))
        view = memoryview(self._raw)[:length]
        self._fill(view, self.tensor.offset + first * pitch)
        _convert(np.frombuffer(view, np.uint8), self.tensor.dtype, out)

    def _read_in_order(self, first: int, out: Floats) -> None:
        """Rows from whole heads: llama.cpp puts the second half of each between the first's."""
        rows, inputs = _in_rows(self.tensor.shape)
        head = rows // self.tensor.reordered_heads
        start, end = first // head, -(-(first + len(out)) // head)
        stored = np.empty(((end - start) * head, inputs), np.float32)
        self._read_as_stored(start * head, stored)
        halves = stored.reshape(end - start, head // 2, 2, inputs).swapaxes(1, 2)
        at = first - start * head
        out[...] = halves.reshape(-1, inputs)[at : at + len(out)]

    def _fill(self, view: memoryview, offset: int) -> None:
        while view:
            try:
                count = os.preadv(self.descriptor, [view], offset)
            except OSError as problem:
                raise InvalidCheckpoint(
                    f"{self.tensor.file} cannot be read: {problem.strerror}"
                ) from None
            if count == 0:
                raise InvalidCheckpoint(f"{self.tensor.file} was cut short while it was read")
            view, offset = view[count:], offset + count


@contextmanager
def open_rows(name: str, tensors: Mapping[str, StoredTensor]) -> Iterator[Rows]:
    """A tensor's rows, as long as the block lasts.

    Raises:
        InvalidCheckpoint: the file cannot be opened, or an eight-bit tensor lacks its scales.
    """
    tensor = tensors[name]
    try:
        descriptor = os.open(tensor.file, os.O_RDONLY)
    except OSError as problem:
        raise InvalidCheckpoint(f"{tensor.file} cannot be read: {problem.strerror}") from None
    try:
        yield Rows(tensor, descriptor, _square_scales(name, tensors))
        # Nobody reads it again: the system need not keep it.
        os.posix_fadvise(descriptor, tensor.offset, tensor.length, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def read_vector(name: str, tensors: Mapping[str, StoredTensor]) -> Floats:
    """A whole tensor in one row: norms, biases, importances."""
    with open_rows(name, tensors) as rows:
        count, inputs = rows.shape
        out = np.empty(count * inputs, np.float32)
        rows.read(0, out.reshape(1, -1))
    return out


def _runs(wanted: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Numbers that lie near each other: what is between them is read with them."""
    return np.split(wanted, np.flatnonzero(np.diff(wanted) > GAP) + 1)


def _in_rows(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[0], shape[1]) if len(shape) == 2 else (1, math.prod(shape))


def _square_scales(name: str, tensors: Mapping[str, StoredTensor]) -> Floats | None:
    tensor = tensors[name]
    if not tensor.dtype.startswith("F8"):
        return None
    scales = tensors.get(name + SCALE_ENDING)
    expected = tuple(-(-size // SQUARE) for size in tensor.shape)
    if scales is None or scales.shape != expected or scales.dtype != "F32":
        raise InvalidCheckpoint(
            f"{tensor.file}: {name} has eight bits and no {name}{SCALE_ENDING} of {expected} floats"
        )
    return read_vector(name + SCALE_ENDING, tensors).reshape(expected)


def _spread(scales: Floats, first: int, shape: tuple[int, ...]) -> Floats:
    """The scale of each weight of some rows."""
    rows = np.arange(first, first + shape[0]) // SQUARE
    found: Floats = np.repeat(scales[rows], SQUARE, axis=1)[:, : shape[1]]
    return found


def _convert(raw: NDArray[np.uint8], dtype: str, out: Floats) -> None:
    if dtype == "BF16":
        kernels().widen(raw.view(np.uint16).reshape(out.shape), out)
    elif dtype == "F16":
        out[...] = raw.view(np.float16).reshape(out.shape)
    elif dtype in BLOCK_FORMATS:
        blocks = BLOCK_FORMATS[dtype]
        out[...] = blocks.floats(raw.reshape(-1, blocks.bytes)).reshape(out.shape)
    elif dtype == "F32":
        out[...] = raw.view(np.float32).reshape(out.shape)
    else:
        out[...] = _eight_bit_floats(dtype)[raw].reshape(out.shape)


@functools.cache
def _eight_bit_floats(dtype: str) -> Floats:
    """What each byte means."""
    kind = ml_dtypes.float8_e4m3fn if dtype == "F8_E4M3" else ml_dtypes.float8_e5m2
    found: Floats = np.arange(256, dtype=np.uint8).view(kind).astype(np.float32)
    return found
