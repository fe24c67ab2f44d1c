"""Reads from a TFLite file what each of the kernels had to do that its profile names."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from edgebuild.vocabulary.artifact import KernelWork
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.units import Bytes

_TYPE = schema.TensorType
SIZES = {
    **{_TYPE.FLOAT32: 4, _TYPE.FLOAT16: 2, _TYPE.INT64: 8, _TYPE.INT32: 4, _TYPE.INT16: 2},
    **{_TYPE.INT8: 1, _TYPE.UINT8: 1, _TYPE.BOOL: 1, _TYPE.INT4: 0.5},
}
NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "CONV_3D")
CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")
TABLES = ("EMBEDDING_LOOKUP", "GATHER")
# XNNPACK's names of what TFLite calls otherwise, by how they begin; the first that fits.
XNNPACK = (
    (r".*DWConv", "DEPTHWISE_CONV_2D"),
    (r"Fully Connected", "FULLY_CONNECTED"),
    (r"Deconvolution", "TRANSPOSE_CONV"),
    (r"Convolution", "CONV_2D"),
    (r"Batch Matrix Multiply", "BATCH_MATMUL"),
    (r"Transpose", "TRANSPOSE"),
    (r"Convert", "conversion"),
    (r"(Static )?(Mean|Reduce|Sum)", "MEAN"),
    (r"(Static )?Reshape|Copy", "RESHAPE"),
    (r"Squared Difference", "SQUARED_DIFFERENCE"),
    (r"Add", "ADD"),
    (r"Subtract", "SUB"),
    (r"Multiply", "MUL"),
    (r"Divide", "DIV"),
    (r"Maximum", "MAXIMUM"),
    (r"Minimum", "MINIMUM"),
    (r"Max Pooling", "MAX_POOL_2D"),
    (r"Average Pooling|Global Average", "AVERAGE_POOL_2D"),
    (r"Softmax", "SOFTMAX"),
    (r"Concatenate", "CONCATENATION"),
    (r"(Static )?Resize Bilinear", "RESIZE_BILINEAR"),
    (r"(Static )?Constant Pad|Static Pad", "PAD"),
    (r"(Static )?Slice|Strided Slice", "SLICE"),
    (r"Split|Even Split", "SPLIT"),
    (r"Depth To Space", "DEPTH_TO_SPACE"),
    (r"Sigmoid", "LOGISTIC"),
    (r"Tanh", "TANH"),
    (r"HardSwish", "HARD_SWISH"),
    (r"GELU", "GELU"),
    (r"Leaky ReLU", "LEAKY_RELU"),
    (r"Reciprocal Square Root", "RSQRT"),
    (r"Clamp", "clamp"),
    (r"Invalid Unary Op", "look-up"),
)
ALIKE = {
    **dict.fromkeys(CONVERSIONS, "conversion"),
    **dict.fromkeys(("RELU", "RELU6", "RELU_0_TO_1", "RELU_N1_TO_1"), "clamp"),
    **{"SUM": "MEAN", "STRIDED_SLICE": "SLICE", "EXPAND_DIMS": "RESHAPE"},
}


@dataclass(frozen=True)
class _Operator:
    token: str
    work: KernelWork


def works_of(path: Path, kernels: Sequence[str]) -> list[KernelWork]:
    """The work of each kernel.

    The profile names kernels, and the file holds more operators than run: constants are folded,
    paddings and conversions are fused. So the two sequences are laid side by side where they
    agree, and what is left over is paired by its class, in order, where as many are left.
    """
    operators = list(_operators(path))
    ran, stored = list(map(_token, kernels)), [operator.token for operator in operators]
    pairs = _side_by_side(ran, stored)
    pairs |= _left_over(ran, stored, pairs)
    # Which kernel computes a layer is XNNPACK's choice; but a layer it is.
    pairs |= _left_over(list(map(_layer, ran)), list(map(_layer, stored)), pairs)
    works: list[KernelWork] = []
    for number, kernel in enumerate(kernels):
        paired = operators[pairs[number]].work if number in pairs else None
        works.append(paired or _put_between(kernel, works[-1:]))
    return works


def _put_between(kernel: str, before: Sequence[KernelWork]) -> KernelWork:
    """A kernel that is no operator of the file works on what the one before it has put out."""
    form = kernel.partition(" (")[0]
    if not before:
        return KernelWork(form, Precision.FP32, 0, Bytes(0), Bytes(0), Bytes(0), 1, 1)
    written, width = before[0].written, before[0].outputs
    numerics = before[0].numerics
    return KernelWork(form, numerics, 0, Bytes(0), written, written, width, width)


def _layer(token: str) -> str:
    return "layer" if token in LAYERS else token


def _token(kernel: str) -> str:
    """A word that a kernel and its operator have in common."""
    for pattern, token in XNNPACK:
        if re.match(pattern, kernel):
            return token
    return ALIKE.get(kernel, kernel)


def _side_by_side(ran: Sequence[str], stored: Sequence[str]) -> dict[int, int]:
    matcher = SequenceMatcher(None, ran, stored, autojunk=False)
    return {
        start + step: place + step
        for start, place, size in matcher.get_matching_blocks()
        for step in range(size)
    }


def _left_over(
    ran: Sequence[str], stored: Sequence[str], pairs: Mapping[int, int]
) -> dict[int, int]:
    """Independent branches may run in another order than they are stored in."""
    taken = set(pairs.values())
    kernels, operators = defaultdict(list), defaultdict(list)
    for number, token in enumerate(ran):
        if number not in pairs:
            kernels[token].append(number)
    for number, token in enumerate(stored):
        if number not in taken:
            operators[token].append(number)
    return {
        kernel: operator
        for token, numbers in kernels.items()
        if len(numbers) <= len(operators[token])
        for kernel, operator in zip(numbers, operators[token], strict=False)
    }


def _operators(path: Path) -> Iterator[_Operator]:
    model = flatbuffer_utils.read_model(path)
    subgraph = model.subgraphs[0]
    names = [_name(model, operator) for operator in subgraph.operators]
    makers = {int(t): n for n, o in enumerate(subgraph.operators) for t in o.outputs}
    readers = {int(t): n for n, o in enumerate(subgraph.operators) for t in o.inputs}
    for name, operator in zip(names, subgraph.operators, strict=True):
        inputs = [subgraph.tensors[int(one)] for one in operator.inputs if one >= 0]
        outputs = [subgraph.tensors[int(one)] for one in operator.outputs]
        constants = [one for one in inputs if _is_constant(model, one)]
        work = _work(name, inputs, outputs, constants)
        before = names[makers[int(operator.inputs[0])]] if operator.inputs[0] in makers else ""
        after = names[readers[int(operator.outputs[0])]] if operator.outputs[0] in readers else ""
        if (before, after) == ("DEQUANTIZE", "QUANTIZE") and len(inputs) == 1:
            yield _Operator("look-up", _looked_up(work))
        else:
            # XNNPACK computes it so.
            token = "FULLY_CONNECTED" if work.form == "convolution 1x1" else name
            yield _Operator(ALIKE.get(token, token), work)


def _name(model: Any, operator: Any) -> str:
    code = model.operatorCodes[operator.opcodeIndex]
    return str(NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)])


def _looked_up(work: KernelWork) -> KernelWork:
    """A function between two conversions is one look-up of bytes in a table, whatever it is."""
    return replace(
        work,
        form="look-up",
        numerics=str(Precision.INT8_STATIC),
        read=Bytes(work.read // 4),
        written=Bytes(work.written // 4),
    )


def _is_constant(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def _work(
    name: str, inputs: Sequence[Any], outputs: Sequence[Any], constants: Sequence[Any]
) -> KernelWork:
    weights = 0 if name in TABLES else sum(map(_bytes, constants))
    varying = [one for one in inputs if not any(one is constant for constant in constants)]
    read = sum(map(_bytes, outputs if name in TABLES else varying))
    form, macs, widths = _described(name, inputs, outputs)
    if name == "FULLY_CONNECTED" and not any(inputs[1] is constant for constant in constants):
        # A product of activations, which the converter writes as a layer where it can.
        form = "BATCH_MATMUL"
    return KernelWork(
        form=form,
        numerics=_numerics(name, inputs, outputs),
        macs=macs,
        weights=Bytes(weights),
        read=Bytes(read),
        written=Bytes(sum(map(_bytes, outputs))),
        inputs=widths[0],
        outputs=widths[1],
    )


def _described(
    name: str, inputs: Sequence[Any], outputs: Sequence[Any]
) -> tuple[str, int, tuple[int, int]]:
    """Its form, multiply-accumulates, and widths."""
    result = _shape(outputs[0])
    if name in ("CONV_2D", "CONV_3D"):
        weight, channels = _shape(inputs[1]), _shape(inputs[0])[-1]
        taps, each = math.prod(weight[1:-1]), weight[-1]
        grouped = "grouped convolution" if each < channels else "convolution"
        form = "convolution 1x1" if taps == 1 and each == channels else grouped
        return form, math.prod(result) * taps * each, (channels, weight[0])
    if name == "DEPTHWISE_CONV_2D":
        weight = _shape(inputs[1])
        widths = _shape(inputs[0])[-1], weight[-1]
        # The converter's way of writing a convolution of gray images.
        form = "depthwise" if widths[0] > 1 else "convolution of one channel"
        return form, math.prod(result) * math.prod(weight[1:3]), widths
    if name == "TRANSPOSE_CONV":
        weight, source = _shape(inputs[1]), _shape(inputs[2])
        widths = source[-1], weight[0]
        return "transposed", math.prod(source) * math.prod(weight[:3]), widths
    if name == "FULLY_CONNECTED":
        outs, ins = _shape(inputs[1])
        rows = math.prod(result) // max(outs, 1)
        return ("linear" if rows > 1 else "linear of one row"), rows * outs * ins, (ins, outs)
    if name == "BATCH_MATMUL":
        inner = math.prod(_shape(inputs[0])) // max(math.prod(result[:-1]), 1)
        return "BATCH_MATMUL", math.prod(result) * inner, (inner, result[-1])
    source = _shape(inputs[0]) if inputs else []
    return name, 0, (source[-1] if source else 1, result[-1] if result else 1)


def _numerics(name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> str:
    if name in CONVERSIONS:
        return "conversion"
    if name in LAYERS and len(inputs) > 1:
        activation = inputs[2 if name == "TRANSPOSE_CONV" else 0].type
        return str(_precision(inputs[1].type, activation))
    is_integer = bool(outputs) and outputs[0].type in (_TYPE.INT8, _TYPE.UINT8)
    return str(Precision.INT8_STATIC if is_integer else Precision.FP32)


def _precision(weight: int, activation: int) -> Precision:
    if weight == _TYPE.INT4:
        return Precision.INT4_WEIGHTS
    if weight == _TYPE.INT8 and activation == _TYPE.INT8:
        return Precision.INT8_STATIC
    return Precision.INT8_DYNAMIC if weight == _TYPE.INT8 else Precision.FP32


def _shape(tensor: Any) -> list[int]:
    return [] if tensor.shape is None else [int(size) for size in tensor.shape]


def _bytes(tensor: Any) -> int:
    return int(math.prod(_shape(tensor)) * SIZES.get(tensor.type, 4))
