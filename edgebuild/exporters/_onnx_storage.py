"""Stores ONNX weights in few bits that onnxruntime widens once, at load.

The runtime folds what it can compute from constants alone when it loads a model. So a Cast from
int4 to int8 in front of a DequantizeLinear leaves the eight-bit kernels as they are and halves the
file, where a DequantizeLinear that reads int4 itself would run in float. The same makes forms of
storage of fp16, of eight-bit floats and of single bits, whose layers compute in fp32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType

from edgebuild.vocabulary.precision import FOUR_BIT_STEPS

# The largest number of E4M3FN.
LARGEST_FP8 = 448.0
# Where operators that read eight-bit weights have the zero point, two inputs after the weight.
ZERO_POINTS = {"DequantizeLinear": 2, "MatMulInteger": 3}
SHIFT = 128


def widen_at_load(model: onnx.ModelProto, names: Iterable[str]) -> None:
    """Stores the named fp32 weights as fp16, with a Cast back."""
    for name in names:
        tensor = _initializer(model, name)
        halves = numpy_helper.to_array(tensor).astype(np.float16)
        _store_narrow(model, tensor, halves, TensorProto.FLOAT)


def store_as_fp8(model: onnx.ModelProto, names: Iterable[str]) -> None:
    """Stores the named fp32 weights as E4M3FN, with a scale for each output channel.

    The largest weight of a channel becomes the largest number of the type (Micikevicius et al.,
    "FP8 Formats for Deep Learning", arXiv 2209.05433).
    """
    for name in names:
        tensor = _initializer(model, name)
        weights = numpy_helper.to_array(tensor)
        largest = np.abs(weights).max(axis=_within_channels(model, tensor), keepdims=True)
        scales = np.maximum(largest / LARGEST_FP8, np.finfo(np.float32).tiny)
        eighths = (weights / scales).astype(ml_dtypes.float8_e4m3fn)
        tensor.CopyFrom(numpy_helper.from_array(eighths, f"{name}_stored"))
        _add_constant(model, f"{name}_scales", scales)
        _compute_first(
            model,
            [
                _node("Cast", [f"{name}_stored"], f"{name}_widened", to=TensorProto.FLOAT),
                _node("Mul", [f"{name}_widened", f"{name}_scales"], name),
            ],
        )


def store_as_signs(model: onnx.ModelProto, names: Iterable[str]) -> None:
    """Stores a bit for each of the named fp32 weights, and a magnitude for each output channel.

    A weight becomes its sign times the mean magnitude of its channel: the binary weights of
    Rastegari et al., "XNOR-Net" (arXiv 1603.05279), section 3.1. Eight signs share a byte, the
    first in its lowest bit.
    """
    for name in names:
        tensor = _initializer(model, name)
        weights = numpy_helper.to_array(tensor)
        magnitudes = np.abs(weights).mean(axis=_within_channels(model, tensor), keepdims=True)
        packed = np.packbits(weights.ravel() >= 0, bitorder="little")[:, None]
        tensor.CopyFrom(numpy_helper.from_array(packed, f"{name}_stored"))
        _add_constant(model, "places_in_a_byte", np.arange(8, dtype=np.uint8))
        _add_constant(model, "lowest_bit", np.array(1, np.uint8))
        _add_constant(model, "first", np.array([0], np.int64))
        _add_constant(model, "in_a_line", np.array([-1], np.int64))
        _add_constant(model, f"{name}_count", np.array([weights.size], np.int64))
        _add_constant(model, f"{name}_shape", np.array(weights.shape, np.int64))
        _add_constant(model, f"{name}_magnitudes", magnitudes)
        _add_constant(model, f"{name}_spans", 2 * magnitudes)
        _compute_first(model, _signs_to_weights(name))


def _signs_to_weights(name: str) -> list[NodeProto]:
    """Bytes to bits, and these to the magnitude below or above zero."""
    current = f"{name}_stored"
    nodes: list[NodeProto] = []
    for kind, others, attributes in (
        ("BitShift", ["places_in_a_byte"], {"direction": "RIGHT"}),
        ("BitwiseAnd", ["lowest_bit"], {}),
        ("Reshape", ["in_a_line"], {}),
        ("Slice", ["first", f"{name}_count"], {}),
        ("Reshape", [f"{name}_shape"], {}),
        ("Cast", [], {"to": TensorProto.FLOAT}),
        ("Mul", [f"{name}_spans"], {}),
        ("Sub", [f"{name}_magnitudes"], {}),
    ):
        output = name if kind == "Sub" else f"{name}_{len(nodes)}"
        nodes.append(_node(kind, [current, *others], output, **attributes))
        current = output
    return nodes


def pack_four_bit(model: onnx.ModelProto, names: Iterable[str]) -> None:
    """Stores the named int8 weights, whose values lie within ±7, as int4, with a Cast back."""
    for name in names:
        tensor = _initializer(model, name)
        values = numpy_helper.to_array(tensor)
        assert np.abs(values).max() <= FOUR_BIT_STEPS, f"{name} is not on the four-bit grid"
        _store_narrow(model, tensor, values.astype(ml_dtypes.int4), TensorProto.INT8)


def shift_shared_weights(model: onnx.ModelProto) -> None:
    """Stores int8 weights that several layers read as uint8, with 128 for zero.

    They mean the same. Where x86 has no VNNI, onnxruntime would shift each signed weight itself so
    that nothing overflows, but cannot do so twice.
    """
    readers = _readers(model)
    for tensor in [t for t in model.graph.initializer if t.data_type == TensorProto.INT8]:
        nodes = [node for node in readers.get(tensor.name, []) if node.op_type in ZERO_POINTS]
        layers = [layer for node in nodes for layer in _layers_behind(node, readers)]
        is_weight = any(node.input[ZERO_POINTS[node.op_type] - 2] == tensor.name for node in nodes)
        if is_weight and len(layers) > 1:
            for node in nodes:
                position = ZERO_POINTS[node.op_type]
                zero = f"{node.input[position]}_shifted"
                old = _initializer(model, node.input[position])
                _add_constant(model, zero, np.full(old.dims, SHIFT, np.uint8))
                node.input[position] = zero
            shifted = numpy_helper.to_array(tensor).astype(np.int16) + SHIFT
            tensor.CopyFrom(numpy_helper.from_array(shifted.astype(np.uint8), tensor.name))


def _layers_behind(node: NodeProto, readers: Mapping[str, list[NodeProto]]) -> list[NodeProto]:
    """The second half of a pair, DequantizeLinear, may serve several layers."""
    return readers.get(node.output[0], []) if node.op_type == "DequantizeLinear" else [node]


def _readers(model: onnx.ModelProto) -> dict[str, list[NodeProto]]:
    found: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


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
    tensor.CopyFrom(numpy_helper.from_array(values, f"{name}_stored"))
    _compute_first(model, [_node("Cast", [f"{name}_stored"], name, to=wide)])


def _within_channels(model: onnx.ModelProto, weight: TensorProto) -> tuple[int, ...]:
    """The axes of a weight that lie within one output channel; of look-ups, within a row."""
    reader = next(node for node in model.graph.node if weight.name in node.input)
    axes = range(len(weight.dims))
    attributes = {entry.name: entry.i for entry in reader.attribute}
    if reader.op_type == "Conv":
        return tuple(axes[1:])
    if reader.op_type == "ConvTranspose":
        return (0, *axes[2:])
    if reader.op_type == "MatMul" or (reader.op_type == "Gemm" and not attributes.get("transB")):
        return tuple(axes[:-1])
    return (axes[-1],)


def _add_constant(model: onnx.ModelProto, name: str, values: np.ndarray) -> None:
    if name not in {tensor.name for tensor in model.graph.initializer}:
        model.graph.initializer.append(numpy_helper.from_array(values, name))


def _node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs, [output], name=f"{output}_made", **attributes)


def _compute_first(model: onnx.ModelProto, nodes: Sequence[NodeProto]) -> None:
    """Puts nodes that depend on constants alone before all others."""
    for place, node in enumerate(nodes):
        model.graph.node.insert(place, node)


def _initializer(model: onnx.ModelProto, name: str) -> TensorProto:
    found: TensorProto = next(t for t in model.graph.initializer if t.name == name)
    return found
