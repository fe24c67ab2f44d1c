"""The loops over weights, compiled: one pass each, vectorized; see _kernels_numpy for what they do.

Floats are compared as the integers of their bits where an order of floats would keep the compiler
from vectorizing, and rounded by an addition after which their last bits are the integer.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from edgebuild.llm._kernels_numpy import LEAST_SCALE, Codes, Floats

# Without fastmath nothing is reordered or fused, so that numpy's bits come out.
_compiled: Any = numba.njit(cache=True, nogil=True, error_model="numpy")
SIGN = np.uint32(0x80000000)
# Floats of this size are whole: what is added to it is rounded half to even.
WHOLE = np.float32(2**23)
ZERO, ONE_WHOLE, INFINITE = np.float32(0), np.float32(1), np.float32(np.inf)
# A half has thirteen bits less after its point than a float.
NARROWER, ONE, ODD_LAST, KEPT = map(np.uint32, (13, 1, 0x0FFF, 0xFFFFE000))
# The least half that is normal, what the smaller ones are rounded by, and what none is as large as.
LEAST_NORMAL, SUBNORMAL, TOO_LARGE = map(np.float32, (2**-14, 0.75, 65520))
LAST_BYTE = np.uint32(0xFF)
# The upper of two integers in one of 64 bits comes down to just above the lower one's bits.
BY_28, LOW_FOUR, HIGH_FOUR = np.uint64(28), np.uint64(0x0F), np.uint64(0xF0)
BY_30, LOW_TWO, NEXT_TWO = np.uint64(30), np.uint64(0b0011), np.uint64(0b1100)


def widen(halves: NDArray[np.uint16], out: Floats) -> None:
    _widen(halves.reshape(-1), out.view(np.uint32).reshape(-1))


def extremes(blocks: Floats) -> tuple[Floats, Floats]:
    low = np.empty(blocks.shape[:2], np.uint32)
    high = np.empty(blocks.shape[:2], np.int32)
    _extremes(blocks.view(np.uint32), blocks.view(np.int32), low, high)
    return low.view(np.float32), high.view(np.float32)


def halved(scales: Floats) -> Floats:
    found = np.empty_like(scales)
    _halved(scales.reshape(-1).view(np.uint32), scales.reshape(-1), found.reshape(-1))
    return found


def inverted(scales: Floats) -> Floats:
    found = np.empty_like(scales)
    _inverted(scales.reshape(-1), found.reshape(-1))
    return found


def codes(blocks: Floats, inverses: Floats, zeros: Floats, bits: int) -> Codes:
    rows, count, block = blocks.shape
    found = np.empty((rows, count, block * bits // 8), np.uint8)
    _codes(blocks, inverses, zeros, np.float32(2**bits - 1), found.reshape(rows, -1))
    return found


def moments(
    blocks: Floats, inverses: Floats, zeros: Floats, top: int, importance: Floats
) -> tuple[Floats, Floats]:
    mixed, squared = (np.empty(blocks.shape[:2], np.float32) for _ in range(2))
    _moments(blocks, inverses, zeros, np.float32(top), importance, mixed, squared)
    return mixed, squared


def errors(
    blocks: Floats, scales: Floats, inverses: Floats, zeros: Floats, top: int, importance: Floats
) -> Floats:
    found = np.empty(blocks.shape[:2], np.float32)
    _errors(blocks, scales, inverses, zeros, np.float32(top), importance, found)
    return found


@_compiled  # type: ignore[untyped-decorator]
def _widen(halves: Any, out: Any) -> None:
    for i in range(halves.size):
        out[i] = np.uint32(halves[i]) << np.uint32(16)


@_compiled  # type: ignore[untyped-decorator]
def _extremes(unsigned: Any, signed: Any, low: Any, high: Any) -> None:
    rows, blocks, block = unsigned.shape
    for row in range(rows):
        for each in range(blocks):
            # Among negative floats, the one with the greatest bits is the least.
            least, greatest = SIGN, np.int32(0)
            for i in range(block):
                least = max(least, unsigned[row, each, i])
                greatest = max(greatest, signed[row, each, i])
            low[row, each] = least if least > SIGN else np.uint32(0)
            high[row, each] = greatest


@_compiled  # type: ignore[untyped-decorator]
def _halved(bits: Any, scales: Any, found: Any) -> None:
    rounded = found.view(np.uint32)
    for i in range(scales.size):
        # Half to even at the thirteenth bit from the last.
        rounded[i] = bits[i] + (ODD_LAST + (bits[i] >> NARROWER & ONE)) & KEPT
    for i in range(scales.size):
        size = abs(scales[i])
        # Subnormal halves are whole at this size, as `WHOLE` is for integers.
        few = np.copysign((size + SUBNORMAL) - SUBNORMAL, scales[i])
        found[i] = few if size < LEAST_NORMAL else found[i]
        found[i] = found[i] if size < TOO_LARGE else np.copysign(INFINITE, scales[i])


@_compiled  # type: ignore[untyped-decorator]
def _inverted(scales: Any, found: Any) -> None:
    for i in range(scales.size):
        is_usable = abs(scales[i]) > LEAST_SCALE
        inverse = ONE_WHOLE / (scales[i] if is_usable else ONE_WHOLE)
        found[i] = inverse if is_usable else ZERO


@_compiled  # type: ignore[untyped-decorator]
def _codes(blocks: Any, inverses: Any, zeros: Any, top: Any, found: Any) -> None:
    rows, count, block = blocks.shape
    # A row of codes, each in the last bits of a float; and two at a time, to be packed.
    shifted = np.empty((count, block), np.float32)
    singles, pairs = shifted.reshape(-1).view(np.uint32), shifted.reshape(-1).view(np.uint64)
    size = found.shape[1]
    for row in range(rows):
        for each in range(count):
            inverse, zero = inverses[row, each], zeros[row, each]
            for i in range(block):
                step = blocks[row, each, i] * inverse + zero
                step = step if step > ZERO else ZERO
                step = step if step < top else top
                shifted[each, i] = step + WHOLE
        if size == singles.size:
            for i in range(size):
                found[row, i] = np.uint8(singles[i] & LAST_BYTE)
        elif size == pairs.size:
            for i in range(size):
                pair = pairs[i]
                found[row, i] = np.uint8(pair & LOW_FOUR | pair >> BY_28 & HIGH_FOUR)
        else:
            for i in range(size):
                one, two = pairs[2 * i], pairs[2 * i + 1]
                low = one & LOW_TWO | one >> BY_30 & NEXT_TWO
                high = two & LOW_TWO | two >> BY_30 & NEXT_TWO
                found[row, i] = np.uint8(low | high << np.uint64(4))


@_compiled  # type: ignore[untyped-decorator]
def _moments(
    blocks: Any, inverses: Any, zeros: Any, top: Any, importance: Any, mixed: Any, squared: Any
) -> None:
    rows, count, block = blocks.shape
    first, second = np.empty(16, np.float32), np.empty(16, np.float32)
    for row in range(rows):
        for each in range(count):
            inverse, zero = inverses[row, each], zeros[row, each]
            first[:] = ZERO
            second[:] = ZERO
            for part in range(0, block, 16):
                for lane in range(16):
                    i = part + lane
                    weight = blocks[row, each, i]
                    step = weight * inverse + zero
                    step = step if step > ZERO else ZERO
                    step = step if step < top else top
                    step = (step + WHOLE) - WHOLE - zero
                    weighted = importance[each, i] * step
                    first[lane] += weighted * weight
                    second[lane] += weighted * step
            a, b = ZERO, ZERO
            for lane in range(16):
                a += first[lane]
                b += second[lane]
            mixed[row, each] = a
            squared[row, each] = b


@_compiled  # type: ignore[untyped-decorator]
def _errors(
    blocks: Any, scales: Any, inverses: Any, zeros: Any, top: Any, importance: Any, found: Any
) -> None:
    rows, count, block = blocks.shape
    lanes = np.empty(16, np.float32)
    for row in range(rows):
        for each in range(count):
            scale, inverse, zero = scales[row, each], inverses[row, each], zeros[row, each]
            lanes[:] = ZERO
            for part in range(0, block, 16):
                for lane in range(16):
                    i = part + lane
                    step = blocks[row, each, i] * inverse + zero
                    step = step if step > ZERO else ZERO
                    step = step if step < top else top
                    step = (step + WHOLE) - WHOLE - zero
                    off = blocks[row, each, i] - scale * step
                    lanes[lane] += importance[each, i] * off * off
            total = ZERO
            for lane in range(16):
                total += lanes[lane]
            found[row, each] = total
