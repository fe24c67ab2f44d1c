"""Rounds rows of weights to few bits, in the layout of onnxruntime's MatMulNBits."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from edgebuild.llm._kernels_numpy import Codes, Floats, pack
from edgebuild.vocabulary.weight_format import WeightFormat

# What a searched scale is tried to be, as shares of what covers the whole block.
SHARES = tuple(np.linspace(1.05, 0.55, 11, dtype=np.float32))
# How zero points are moved then, and how often that is done: more gained nothing.
SHIFTS = (0, -1, 1)
ROUNDS = 2


class Kernels(Protocol):
    """The loops over weights; `_kernels_numpy` says what each does."""

    def widen(self, halves: NDArray[np.uint16], out: Floats) -> None: ...

    def extremes(self, blocks: Floats) -> tuple[Floats, Floats]: ...

    def halved(self, scales: Floats) -> Floats: ...

    def inverted(self, scales: Floats) -> Floats: ...

    def codes(self, blocks: Floats, inverses: Floats, zeros: Floats, bits: int) -> Codes: ...

    def moments(
        self, blocks: Floats, inverses: Floats, zeros: Floats, top: int, importance: Floats
    ) -> tuple[Floats, Floats]: ...

    def errors(
        self,
        blocks: Floats,
        scales: Floats,
        inverses: Floats,
        zeros: Floats,
        top: int,
        importance: Floats,
    ) -> Floats: ...


@functools.cache
def kernels() -> Kernels:
    """The compiled loops; numpy's where numba is missing or does not know this numpy."""
    try:
        found = importlib.import_module("edgebuild.llm._kernels_numba")
    except ImportError:
        found = importlib.import_module("edgebuild.llm._kernels_numpy")
    return cast(Kernels, found)


@dataclass(frozen=True)
class Packed:
    """Rows of a matrix: codes [rows, blocks, bytes], scales [rows, blocks], zero points packed.

    Of every byte, the low bits come first. Zero points are None where all are the middle code.
    """

    codes: Codes
    scales: NDArray[np.floating]
    zero_points: Codes | None


@dataclass(frozen=True)
class Grid:
    """A scale and a zero point for each block; scales as they will be read, in floats."""

    scales: Floats
    zeros: Floats


def quantize(
    weights: Floats,
    layout: WeightFormat,
    importance: Floats | None = None,
    loops: Kernels | None = None,
) -> Packed:
    """Rounds [rows, inputs]; with an importance for each input, scales are searched for.

    Without, a block's scale covers its extremes.

    Raises:
        ValueError: a weight that is not finite, or too large for the scales' type.
    """
    loops = loops or kernels()
    blocks = in_blocks(weights, layout)
    low, high = loops.extremes(blocks)
    if not np.isfinite(low.min() + high.max()):
        raise ValueError("a weight is not finite")
    grid = _covering(low, high, layout, loops)
    if importance is not None:
        weighted = in_blocks(importance[None], layout)[0]
        grid = _searched(blocks, grid, (low, high), layout, weighted, loops)
    if not np.isfinite(grid.scales).all():
        raise ValueError(f"a weight is too large for scales of {layout.scale_bits} bits")
    found = loops.codes(blocks, loops.inverted(grid.scales), grid.zeros, layout.bits)
    scales = grid.scales if layout.scale_bits == 32 else grid.scales.astype(np.float16)
    zeros = None if layout.is_symmetric else pack_rows(grid.zeros.astype(np.uint8), layout.bits)
    return Packed(found, scales, zeros)


def dequantize(packed: Packed, layout: WeightFormat, inputs: int) -> Floats:
    """The floats that a kernel computes with, [rows, inputs]."""
    steps = unpack(packed.codes, layout.bits).astype(np.float32)
    middle = np.float32(2 ** (layout.bits - 1))
    if packed.zero_points is None:
        steps -= middle
    else:
        zeros = unpack(packed.zero_points, layout.bits)[:, : packed.scales.shape[1]]
        steps -= zeros.astype(np.float32)[..., None]
    found = steps * packed.scales.astype(np.float32)[..., None]
    return found.reshape(len(found), -1)[:, :inputs]


def in_blocks(weights: Floats, layout: WeightFormat) -> Floats:
    """[rows, blocks, block], the last block filled with zeros."""
    rows, inputs = weights.shape
    missing = layout.blocks(inputs) * layout.block - inputs
    whole = np.pad(weights, ((0, 0), (0, missing))) if missing else weights
    return np.ascontiguousarray(whole).reshape(rows, -1, layout.block)


def pack_rows(found: Codes, bits: int) -> Codes:
    """`pack`, for rows that may not fill their last byte."""
    missing = -found.shape[-1] % (8 // bits)
    padding = [(0, 0)] * (found.ndim - 1) + [(0, missing)]
    return pack(np.pad(found, padding) if missing else found, bits)


def unpack(packed: Codes, bits: int) -> Codes:
    """The reverse of `pack`."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    apart = packed[..., None] >> shifts & np.uint8(2**bits - 1)
    return apart.reshape(*packed.shape[:-1], -1)


def _top(layout: WeightFormat) -> int:
    return int(2**layout.bits - 1)


def _covering(low: Floats, high: Floats, layout: WeightFormat, loops: Kernels) -> Grid:
    """The grid from the least to the greatest weight.

    A symmetric one has a step more on one side of zero: its scale is negative where the greatest
    magnitude is that of a positive weight, so that it lands on that side.
    """
    if layout.is_symmetric:
        middle = np.float32(2 ** (layout.bits - 1))
        signed: Floats = np.where(high > -low, high, low)
        return Grid(_as_stored(signed / -middle, layout, loops), np.full_like(low, middle))
    top = np.float32(_top(layout))
    scales = _as_stored((high - low) / top, layout, loops)
    zeros = np.rint(-low * loops.inverted(scales))
    return Grid(scales, np.clip(zeros, np.float32(0), top))


def _as_stored(scales: Floats, layout: WeightFormat, loops: Kernels) -> Floats:
    return scales if layout.scale_bits == 32 else loops.halved(scales)


def _searched(
    blocks: Floats,
    covering: Grid,
    extremes: tuple[Floats, Floats],
    layout: WeightFormat,
    importance: Floats,
    loops: Kernels,
) -> Grid:
    """The grid with the least weighted error: the best of many scales, then fitted in rounds."""
    low, high = extremes
    best, least = covering, _errors(blocks, covering, layout, importance, loops)
    for share in SHARES:
        tried = _covering(low * share, high * share, layout, loops)
        best, least = _better(blocks, best, least, tried, layout, importance, loops)
    for shift in ((0,) if layout.is_symmetric else SHIFTS) * ROUNDS:
        tried = _fitted(blocks, best, shift, layout, importance, loops)
        best, least = _better(blocks, best, least, tried, layout, importance, loops)
    return best


def _fitted(
    blocks: Floats,
    grid: Grid,
    shift: int,
    layout: WeightFormat,
    importance: Floats,
    loops: Kernels,
) -> Grid:
    """The scale with the least squares for the codes that weights now have, zero points shifted."""
    top = _top(layout)
    zeros = np.clip(grid.zeros + np.float32(shift), np.float32(0), np.float32(top))
    mixed, squared = loops.moments(blocks, loops.inverted(grid.scales), zeros, top, importance)
    fitted = np.where(squared > 0, mixed / np.where(squared > 0, squared, 1), grid.scales)
    return Grid(_as_stored(fitted.astype(np.float32), layout, loops), zeros)


def _better(
    blocks: Floats,
    best: Grid,
    least: Floats,
    tried: Grid,
    layout: WeightFormat,
    importance: Floats,
    loops: Kernels,
) -> tuple[Grid, Floats]:
    """Of two grids the better one, block by block."""
    found = _errors(blocks, tried, layout, importance, loops)
    wins = found < least
    grid = Grid(np.where(wins, tried.scales, best.scales), np.where(wins, tried.zeros, best.zeros))
    return grid, np.where(wins, found, least)


def _errors(
    blocks: Floats, grid: Grid, layout: WeightFormat, importance: Floats, loops: Kernels
) -> Floats:
    inverses = loops.inverted(grid.scales)
    return loops.errors(blocks, grid.scales, inverses, grid.zeros, _top(layout), importance)
