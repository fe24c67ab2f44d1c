"""The loops over weights in numpy: slower, and bit for bit what the compiled ones compute.

Weights come as blocks of floats, [rows, blocks, block]; what a block has one of as [rows, blocks].
Sums are taken in sixteen lanes, as vector units do, so that both round alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]
LANES = 16
# Below this, an inverse would be infinite; such a block is all zeros to any float16.
LEAST_SCALE = np.float32(1e-30)


def widen(halves: NDArray[np.uint16], out: Floats) -> None:
    """bfloat16 is the upper half of a float."""
    np.left_shift(halves, 16, out=out.view(np.uint32), dtype=np.uint32)


def extremes(blocks: Floats) -> tuple[Floats, Floats]:
    """The least and the greatest weight of each block, zero included."""
    # Adding zero makes a negative zero positive.
    return (
        np.minimum(blocks.min(axis=2), np.float32(0)) + np.float32(0),
        np.maximum(blocks.max(axis=2), np.float32(0)) + np.float32(0),
    )


def halved(scales: Floats) -> Floats:
    """What is left of each in sixteen bits; infinite where it is too large for them."""
    with np.errstate(over="ignore"):
        return scales.astype(np.float16).astype(np.float32)


def inverted(scales: Floats) -> Floats:
    """One over each, and zero where that would be infinite."""
    usable = np.abs(scales) > LEAST_SCALE
    safe = np.where(usable, scales, np.float32(1))
    return np.where(usable, np.float32(1) / safe, np.float32(0))


def codes(blocks: Floats, inverses: Floats, zeros: Floats, bits: int) -> Codes:
    """Each weight in steps from its block's zero point, rounded half to even, and packed."""
    return pack(_steps(blocks, inverses, zeros, 2**bits - 1).astype(np.uint8), bits)


def pack(found: Codes, bits: int) -> Codes:
    """Codes of a byte each, put together along the last axis, the first in the lowest bits."""
    if bits == 8:
        return found
    # The codes of one byte are neighbors in a wider integer: shifted onto each other.
    wide: NDArray[Any] = found.view(np.uint16 if bits == 4 else np.uint32)
    folded = wide | wide >> 4 if bits == 4 else wide | wide >> 6 | wide >> 12 | wide >> 18
    packed: Codes = folded.astype(np.uint8)
    return packed


def moments(
    blocks: Floats, inverses: Floats, zeros: Floats, top: int, importance: Floats
) -> tuple[Floats, Floats]:
    """Sums over each block of importance · weight · step and of importance · step²."""
    steps = _steps(blocks, inverses, zeros, top) - zeros[..., None]
    weighted = importance * steps
    return _sum(weighted * blocks), _sum(weighted * steps)


def errors(
    blocks: Floats, scales: Floats, inverses: Floats, zeros: Floats, top: int, importance: Floats
) -> Floats:
    """The squared rounding error of each block, weighted by importance."""
    steps = _steps(blocks, inverses, zeros, top) - zeros[..., None]
    off = blocks - scales[..., None] * steps
    return _sum(importance * off * off)


def _steps(blocks: Floats, inverses: Floats, zeros: Floats, top: int) -> Floats:
    found = blocks * inverses[..., None] + zeros[..., None]
    steps: Floats = np.rint(np.clip(found, np.float32(0), np.float32(top)))
    return steps


def _sum(terms: Floats) -> Floats:
    rows, blocks, block = terms.shape
    split = terms.reshape(rows, blocks, block // LANES, LANES)
    lanes = np.zeros((rows, blocks, LANES), np.float32)
    for part in range(block // LANES):
        lanes += split[:, :, part]
    total = np.zeros((rows, blocks), np.float32)
    for lane in range(LANES):
        total += lanes[..., lane]
    return total
