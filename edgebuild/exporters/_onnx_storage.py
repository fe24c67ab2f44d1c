"""Stores ONNX weights in four or sixteen bits that onnxruntime widens once, at load.

The runtime folds a Cast of a constant when it loads a model. So a Cast from int4 to int8 in front
of a DequantizeLinear leaves the eight-bit kernels as they are and halves the file, where a
DequantizeLinear that reads int4 itself would run in float.
"""

from __future__ import annotations

from collections.abc import Iterable

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType

# The symmetric narrow grid: as many steps below zero as above.
FOUR_BIT_STEPS = 7


def widen_at_load(model: onnx.ModelProto, names: Iterable[str]) -> None:
    """Stores the named fp32 weights as fp16, with a Cast back."""
    for name in names:
        tensor = _initializer(model, name)
        halves = numpy_helper.to_array(tensor).astype(np.float16)
        _store_narrow(model, tensor, halves, TensorProto.FLOAT)


def pack_four_bit(model: onnx.ModelProto, names: Iterable[str]) -> None:
    """Stores the named int8 weights, whose values lie within ±7, as int4, with a Cast back."""
    for name in names:
        tensor = _initializer(model, name)
        values = numpy_helper.to_array(tensor)
        assert np.abs(values).max() <= FOUR_BIT_STEPS, f"{name} is not on the four-bit grid"
        _store_narrow(model, tensor, values.astype(ml_dtypes.int4), TensorProto.INT8)


def four_bit_grid(model: onnx.ModelProto, name: str) -> list[dict[str, object]]:
    """The scale of every output channel that puts the largest weight on the last step.

    In the form of onnxruntime's `TensorQuantOverrides`.
    """
    weights = numpy_helper.to_array(_initializer(model, name))
    largest = np.abs(weights).reshape(len(weights), -1).max(axis=1)
    scales = np.maximum(largest / FOUR_BIT_STEPS, np.finfo(np.float32).tiny)
    return [
        {
            "axis": 0,
            "quant_type": QuantType.QInt8,
            "scale": np.array(scale, dtype=np.float32),
            "zero_point": np.array(0, dtype=np.int8),
        }
        for scale in scales
    ]


def _store_narrow(
    model: onnx.ModelProto, tensor: TensorProto, values: np.ndarray, wide: int
) -> None:
    """Replaces a constant by a narrow one and a Cast that bears the constant's name."""
    name = tensor.name
    narrow = f"{name}_stored"
    tensor.CopyFrom(numpy_helper.from_array(values, narrow))
    model.graph.node.insert(
        0, helper.make_node("Cast", [narrow], [name], name=f"{name}_widen", to=wide)
    )


def _initializer(model: onnx.ModelProto, name: str) -> TensorProto:
    found: TensorProto = next(t for t in model.graph.initializer if t.name == name)
    return found
