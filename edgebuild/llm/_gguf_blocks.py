"""The block formats of GGUF as floats: bit-exact with gguf-py's quants.py.

Each takes blocks of bytes, [blocks, bytes of a block], and gives [blocks, weights of a block].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebuild.llm._kernels_numpy import Floats

Bytes = NDArray[Any]
Array = NDArray[Any]


@dataclass(frozen=True)
class BlockFormat:
    """How many weights a block has, in how many bytes, and what they mean."""

    weights: int
    bytes: int
    floats: Callable[[Bytes], Array]


def _half(raw: Bytes, at: int) -> Floats:
    """The float16 at a place of each block, as a column."""
    return np.ascontiguousarray(raw[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(raw: Bytes) -> Bytes:
    """All low halves of the bytes, then all high ones."""
    return np.concatenate([raw & 0x0F, raw >> 4], axis=1)


def _shifted(raw: Bytes, width: int, shifts: tuple[int, ...]) -> Bytes:
    """Runs of bytes, each shifted in turn: [blocks, runs × shifts, width]."""
    by = np.array(shifts, np.uint8).reshape(1, 1, -1, 1)
    return (raw.reshape(len(raw), -1, 1, width) >> by).reshape(len(raw), -1, width)


def _fifth_bits(raw: Bytes) -> Bytes:
    """32 bits, one for each weight of a block, in the place above four."""
    return np.unpackbits(raw, axis=1, bitorder="little") << 4


def _q4_0(raw: Bytes) -> Array:
    return _half(raw, 0) * (_nibbles(raw[:, 2:]).astype(np.float32) - 8)


def _q4_1(raw: Bytes) -> Array:
    return _half(raw, 0) * _nibbles(raw[:, 4:]).astype(np.float32) + _half(raw, 2)


def _q5_0(raw: Bytes) -> Array:
    codes = _nibbles(raw[:, 6:]) | _fifth_bits(raw[:, 2:6])
    return _half(raw, 0) * (codes.astype(np.float32) - 16)


def _q5_1(raw: Bytes) -> Array:
    codes = _nibbles(raw[:, 8:]) | _fifth_bits(raw[:, 4:8])
    return _half(raw, 0) * codes.astype(np.float32) + _half(raw, 2)


def _q8_0(raw: Bytes) -> Array:
    return _half(raw, 0) * raw[:, 2:].view(np.int8).astype(np.float32)


def _q2_k(raw: Bytes) -> Array:
    packed = raw[:, :16]
    scales = _half(raw, 80) * (packed & 0x0F).astype(np.float32)
    least = _half(raw, 82) * (packed >> 4).astype(np.float32)
    codes = _shifted(raw[:, 16:80], 32, (0, 2, 4, 6)) & 3
    return _spread(scales, least, codes.reshape(len(raw), 16, 16))


def _q3_k(raw: Bytes) -> Array:
    low = _shifted(raw[:, 96:104], 8, (0, 4)).reshape(len(raw), 16) & 0x0F
    high = _shifted(raw[:, 104:108], 4, (0, 2, 4, 6)).reshape(len(raw), 16) & 3
    steps = (low | high << 4).astype(np.int8) - 32
    scales = _half(raw, 108) * steps.astype(np.float32)
    codes = _shifted(raw[:, 32:96], 32, (0, 2, 4, 6)) & 3
    # A bit that is not set takes four away.
    missing = (_shifted(raw[:, :32], 32, tuple(range(8))) & 1) ^ 1
    signed = codes.astype(np.int8) - (missing << 2).astype(np.int8)
    return scales[..., None] * signed.reshape(len(raw), 16, 16).astype(np.float32)


def _q4_k(raw: Bytes) -> Array:
    scales, least = _six_bits(raw)
    return _spread(scales, least, _shifted(raw[:, 16:], 32, (0, 4)) & 0x0F)


def _q5_k(raw: Bytes) -> Array:
    scales, least = _six_bits(raw)
    low = _shifted(raw[:, 48:], 32, (0, 4)) & 0x0F
    high = _shifted(raw[:, 16:48], 32, tuple(range(8))) & 1
    return _spread(scales, least, low | high << 4)


def _q6_k(raw: Bytes) -> Array:
    low = _shifted(raw[:, :128], 64, (0, 4)) & 0x0F
    high = _shifted(raw[:, 128:192], 32, (0, 2, 4, 6)) & 3
    codes = low.reshape(len(raw), -1, 32) | high << 4
    signed = codes.astype(np.int8) - 32
    scales = _half(raw, 208) * raw[:, 192:208].view(np.int8).astype(np.float32)
    return scales[..., None] * signed.reshape(len(raw), 16, 16).astype(np.float32)


def _six_bits(raw: Bytes) -> tuple[Floats, Floats]:
    """The eight scales and least values of Q4_K and Q5_K, of which four keep their upper bits."""
    first, second, third = (raw[:, at : at + 4] for at in (4, 8, 12))
    scales = np.concatenate([first & 0x3F, third & 0x0F | first >> 2 & 0x30], axis=1)
    least = np.concatenate([second & 0x3F, third >> 4 | second >> 2 & 0x30], axis=1)
    return _half(raw, 0) * scales.astype(np.float32), _half(raw, 2) * least.astype(np.float32)


def _spread(scales: Floats, least: Floats, codes: Bytes) -> Array:
    found: Array = scales[..., None] * codes.astype(np.float32) - least[..., None]
    return found


BLOCK_FORMATS = {
    "Q4_0": BlockFormat(32, 18, _q4_0),
    "Q4_1": BlockFormat(32, 20, _q4_1),
    "Q5_0": BlockFormat(32, 22, _q5_0),
    "Q5_1": BlockFormat(32, 24, _q5_1),
    "Q8_0": BlockFormat(32, 34, _q8_0),
    "Q2_K": BlockFormat(256, 84, _q2_k),
    "Q3_K": BlockFormat(256, 110, _q3_k),
    "Q4_K": BlockFormat(256, 144, _q4_k),
    "Q5_K": BlockFormat(256, 176, _q5_k),
    "Q6_K": BlockFormat(256, 210, _q6_k),
}
