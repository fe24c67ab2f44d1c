"""Takes over what GPTQ or AWQ has rounded: the same codes, scales and zero points, repacked.

Both store a matrix transposed, in 32-bit integers: GPTQ packs along the inputs, AWQ along the
outputs, out of order. Nothing is rounded again.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebuild.llm._kernels_numpy import Codes
from edgebuild.llm.checkpoint import Checkpoint, StoredTensor, packed_name
from edgebuild.llm.mix import Layouts
from edgebuild.llm.quantize import Packed, pack_rows
from edgebuild.vocabulary.decoder import Weights
from edgebuild.vocabulary.errors import InvalidCheckpoint
from edgebuild.vocabulary.weight_format import BLOCKS, INTEGER_BITS, WeightFormat

# Where AWQ puts each of eight neighbors in an integer, from the lowest bits on.
AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
# A group that is no block, such as a whole row, is cut into blocks of one scale.
CUT_BLOCK = 128
PARTS = ("qweight", "qzeros", "scales")


@dataclass(frozen=True)
class Packing:
    """How a checkpoint was quantized; a group of 0 is a whole row."""

    method: str
    bits: int
    group: int
    # GPTQ's first format stores zero points less one.
    zero_offset: int

    @property
    def per_integer(self) -> int:
        return 32 // self.bits

    def layout(self, inputs: int) -> WeightFormat:
        group = self.group or inputs
        return WeightFormat(self.bits, group if group in BLOCKS else CUT_BLOCK, False)


@dataclass(frozen=True)
class Repacked:
    """Layouts that leave to packed matrices their own."""

    checkpoint: Checkpoint
    packing: Packing
    others: Layouts

    def of(self, weights: Weights, name: str, /) -> WeightFormat:
        if packed_name(name, "qweight") in self.checkpoint.tensors:
            return self.packing.layout(weights.inputs)
        return self.others.of(weights, name)


def packing_of(checkpoint: Checkpoint) -> Packing | None:
    """How the checkpoint's matrices are packed; None where they are floats.

    Raises:
        InvalidCheckpoint: a method or a variant that is not read here.
    """
    settings, method = checkpoint.quantization, checkpoint.method
    if method not in ("gptq", "awq"):
        return None
    bits, group = settings.get("bits", settings.get("w_bit")), settings.get("group_size")
    is_known = bits in (INTEGER_BITS if method == "gptq" else (4,))
    if not is_known or not isinstance(group, int) or str(settings.get("version")) == "gemv":
        raise InvalidCheckpoint(
            f"{checkpoint.path}: {method} with {bits} bits in groups of {group} is not read"
        )
    is_first = method == "gptq" and settings.get("checkpoint_format", "gptq") == "gptq"
    return Packing(method, int(str(bits)), max(group, 0), int(is_first))


def is_packed(name: str, checkpoint: Checkpoint) -> bool:
    return packed_name(name, "qweight") in checkpoint.tensors


def packed_bytes(name: str, checkpoint: Checkpoint) -> int:
    """What a packed matrix takes in the checkpoint."""
    return sum(checkpoint.tensors[packed_name(name, part)].length for part in PARTS)


def repacked(
    name: str, shape: tuple[int, ...], checkpoint: Checkpoint, packing: Packing, at_once: int
) -> Iterator[Packed]:
    """A matrix in runs of rows, about so many weights each.

    Raises:
        InvalidCheckpoint: arrays of other shapes, or inputs that are not grouped in their order.
    """
    rows, inputs = shape
    stored = {part: checkpoint.tensors[packed_name(name, part)] for part in PARTS}
    _refuse_other_shapes(name, stored, shape, packing)
    _refuse_other_order(name, inputs, checkpoint, packing)
    # Outputs that share an integer stay together.
    step = max(1, at_once // inputs // packing.per_integer) * packing.per_integer
    for first in range(0, rows, step):
        yield _run(name, stored, first, min(first + step, rows), inputs, packing)


def _run(
    name: str,
    stored: Mapping[str, StoredTensor],
    first: int,
    end: int,
    inputs: int,
    packing: Packing,
) -> Packed:
    layout = packing.layout(inputs)
    per = packing.per_integer
    packed = first // per, end // per
    zeros = _apart(_columns(stored["qzeros"], *packed), packing, is_along_rows=True)
    if packing.method == "awq":
        codes = _apart(_columns(stored["qweight"], *packed), packing, is_along_rows=True)
    else:
        codes = _apart(_columns(stored["qweight"], first, end), packing, is_along_rows=False)
    top = np.uint8(2**packing.bits - 1)
    scales = _as_halves(name, _columns(stored["scales"], first, end), stored["scales"].dtype)
    # A group may be several blocks, all with its scale.
    times = layout.blocks(inputs) // scales.shape[0]
    zeros = np.repeat((zeros + np.uint8(packing.zero_offset)) & top, times, axis=0)
    blocks = np.ascontiguousarray(codes.T).reshape(end - first, -1, layout.block)
    return Packed(
        pack_rows(blocks, packing.bits),
        np.ascontiguousarray(np.repeat(scales, times, axis=0).T),
        pack_rows(np.ascontiguousarray(zeros.T), packing.bits),
    )


def _columns(tensor: StoredTensor, first: int, end: int) -> NDArray[Any]:
    """Some columns of all rows: read row by row, as they lie."""
    width = tensor.length // math.prod(tensor.shape)
    pitch = tensor.shape[1] * width
    kind = {"I32": np.uint32, "F16": np.float16, "BF16": np.uint16, "F32": np.float32}
    descriptor = os.open(tensor.file, os.O_RDONLY)
    try:
        starts = range(tensor.offset + first * width, tensor.offset + tensor.length, pitch)
        read = b"".join(os.pread(descriptor, (end - first) * width, at) for at in starts)
    finally:
        os.close(descriptor)
    if len(read) != tensor.shape[0] * (end - first) * width:
        raise InvalidCheckpoint(f"{tensor.file} was cut short while it was read")
    return np.frombuffer(read, kind[tensor.dtype]).reshape(tensor.shape[0], -1)


def _apart(packed: NDArray[Any], packing: Packing, *, is_along_rows: bool) -> Codes:
    """Codes [inputs or groups, outputs] from integers that are packed along one of both."""
    shifts = np.arange(0, 32, packing.bits, dtype=np.uint32)
    if packing.method == "awq":
        shifts = shifts[list(AWQ_PLACES)]
    found = (packed[..., None] >> shifts & np.uint32(2**packing.bits - 1)).astype(np.uint8)
    if is_along_rows:
        return found.reshape(len(packed), -1)
    return found.transpose(0, 2, 1).reshape(-1, packed.shape[1])


def _as_halves(name: str, scales: NDArray[Any], dtype: str) -> NDArray[np.float16]:
    if dtype == "BF16":
        scales = (scales.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        found: NDArray[np.float16] = scales.astype(np.float16)
    if not np.isfinite(found).all():
        raise InvalidCheckpoint(f"{name}: a scale is not finite, or too large for fp16")
    return found


def _refuse_other_shapes(
    name: str, stored: Mapping[str, StoredTensor], shape: tuple[int, ...], packing: Packing
) -> None:
    rows, inputs = shape
    group, per = packing.group or inputs, packing.per_integer
    block = packing.layout(inputs).block
    if inputs % group or group % block or rows % per:
        raise InvalidCheckpoint(f"{name}: {rows} × {inputs} weights are no groups of {group}")
    weights = (inputs, rows // per) if packing.method == "awq" else (inputs // per, rows)
    expected = {
        "qweight": (weights, ("I32",)),
        "qzeros": ((inputs // group, rows // per), ("I32",)),
        "scales": ((inputs // group, rows), ("F16", "BF16", "F32")),
    }
    for part, (sizes, dtypes) in expected.items():
        if stored[part].shape != sizes or stored[part].dtype not in dtypes:
            raise InvalidCheckpoint(
                f"{stored[part].file}: {packed_name(name, part)} is {stored[part].dtype} "
                f"{stored[part].shape}, where {packing.method} has {dtypes[0]} {sizes}"
            )


def _refuse_other_order(name: str, inputs: int, checkpoint: Checkpoint, packing: Packing) -> None:
    """GPTQ may sort inputs before it groups them, which no kernel here undoes."""
    order = checkpoint.tensors.get(packed_name(name, "g_idx"))
    if order is None:
        return
    with order.file.open("rb") as file:
        file.seek(order.offset)
        read = np.frombuffer(file.read(order.length), np.int32)
    expected = np.arange(inputs) // (packing.group or inputs)
    if not np.array_equal(read, expected):
        raise InvalidCheckpoint(
            f"{checkpoint.path}: {name} is grouped out of order (desc_act), for which "
            "onnxruntime has no kernel: give one that was made without"
        )
