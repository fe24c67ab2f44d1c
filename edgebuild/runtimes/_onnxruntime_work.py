"""Reads from onnxruntime's profile what each kernel had to do, and in which arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgebuild.vocabulary.artifact import Arithmetic, KernelWork
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.units import Bytes

INTEGER_KERNELS = {
    "QLinearConv", "QGemm", "QLinearMatMul", "QLinearAdd", "QLinearMul", "QLinearConcat",
    "QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearSigmoid",
    "QLinearSoftmax", "QLinearWhere", "QLinearReduceMean", "QAttention", "MatMulInteger",
    "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "ConvInteger",
    "MatMulNBits",
}  # fmt: skip
CONVERSIONS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
INTEGER_TYPES = {"int8", "uint8"}
# Where a layer's kernel has its weights among its inputs, and what it computes in.
STATIC, DYNAMIC = Precision.INT8_STATIC, Precision.INT8_DYNAMIC
LAYERS = {
    "Conv": (1, Precision.FP32),
    "FusedConv": (1, Precision.FP32),
    "ConvTranspose": (1, Precision.FP32),
    "Gemm": (1, Precision.FP32),
    "FusedGemm": (1, Precision.FP32),
    "MatMul": (1, Precision.FP32),
    "FusedMatMul": (1, Precision.FP32),
    "QLinearConv": (3, STATIC),
    "QGemm": (3, STATIC),
    "QLinearMatMul": (3, STATIC),
    "DynamicQuantizeMatMul": (1, DYNAMIC),
    "MatMulIntegerToFloat": (1, DYNAMIC),
    "MatMulInteger": (1, DYNAMIC),
    "MatMulNBits": (1, Precision.INT4_WEIGHTS),
}
SIZES = {
    **{"float": 4, "float16": 2, "double": 8, "int64": 8, "int32": 4, "bool": 1},
    **{"int8": 1, "uint8": 1, "int16": 2, "uint16": 2},
}

Event = Mapping[str, Any]
Tensor = tuple[str, Sequence[int]]


def arithmetic(event: Event) -> Arithmetic:
    """How a kernel computed, by its name and its first input."""
    if event["kernel"] in CONVERSIONS:
        return Arithmetic.CONVERSION
    if event["kernel"] in INTEGER_KERNELS or _reads_integers(event):
        return Arithmetic.INTEGER
    return Arithmetic.FLOAT


def work_of(event: Event) -> KernelWork:
    """What a kernel had to do, from the shapes that it was given."""
    position, precision = LAYERS.get(event["kernel"], (0, None))
    inputs = [(kind, shape) for kind, shape in event["inputs"]]
    if precision is not None and len(inputs) > position:
        return _layer(event, inputs, position, precision)
    return _other(event, inputs)


def _layer(
    event: Event, inputs: Sequence[Tensor], position: int, precision: Precision
) -> KernelWork:
    source, (_, weight), result = inputs[0], inputs[position], event["outputs"][0]
    form, macs, widths = (
        _convolution(event["kernel"], source[1], weight, result[1])
        if "Conv" in event["kernel"]
        else _product(event, source[1], weight, result[1])
    )
    return KernelWork(
        form=form,
        numerics=precision,
        macs=macs,
        weights=Bytes(event["parameters"]),
        # Beside the first input it may add a second one to the result.
        read=Bytes(max(sum(map(_bytes, inputs)) - event["parameters"], _bytes(source))),
        written=Bytes(_bytes(result)),
        inputs=widths[0],
        outputs=widths[1],
    )


def _convolution(
    kernel: str, source: Sequence[int], weight: Sequence[int], result: Sequence[int]
) -> tuple[str, int, tuple[int, int]]:
    """Its form, multiply-accumulates, and widths; weights are (outputs, inputs a group, ...)."""
    if kernel == "ConvTranspose":
        widths = weight[0], result[1]
        return "transposed", math.prod(source) * math.prod(weight[1:]), widths
    channels = _channels(source, weight, result)
    macs = math.prod(result) * math.prod(weight[1:])
    return _form(channels, weight), macs, (channels, weight[0])


def _channels(source: Sequence[int], weight: Sequence[int], result: Sequence[int]) -> int:
    """Those of the input; they come last where the runtime has changed the layout."""
    fitting = [
        source[axis]
        for axis in (1, -1)
        if result[axis] == weight[0] and source[axis] % max(weight[1], 1) == 0
    ]
    # Where both could be, groups are the rarer case.
    return weight[1] if weight[1] in fitting else (fitting or [source[1]])[0]


def _form(channels: int, weight: Sequence[int]) -> str:
    groups = channels // max(weight[1], 1)
    if groups > 1:
        return "depthwise" if weight[1] == 1 else "grouped convolution"
    is_pointwise = math.prod(weight[2:]) == 1
    return "convolution 1x1" if is_pointwise else "convolution"


def _product(
    event: Event, source: Sequence[int], weight: Sequence[int], result: Sequence[int]
) -> tuple[str, int, tuple[int, int]]:
    """A product with constant weights is a layer, of one row or of many; else it is none."""
    outputs = result[-1] if result else 1
    inner = source[-1] if source else 1
    macs = math.prod(result) * inner
    if event["kernel"] != "MatMulNBits" and event["parameters"] < math.prod(weight):
        return "MatMul", macs, (inner, outputs)
    rows = math.prod(result) // max(outputs, 1)
    return ("linear" if rows > 1 else "linear of one row"), macs, (inner, outputs)


def _other(event: Event, inputs: Sequence[Tensor]) -> KernelWork:
    """An operator without weights, or with others than a layer's."""
    kernel = str(event["kernel"])
    read = sum(map(_bytes, inputs))
    weights = min(int(event["parameters"]), read)
    if kernel == "Gather":
        # Of a table, only the rows that are wanted.
        weights, read = 0, sum(map(_bytes, event["outputs"]))
    return KernelWork(
        form=kernel.removeprefix("QLinear"),
        numerics=_numerics(event),
        macs=0,
        weights=Bytes(weights),
        read=Bytes(max(read - weights, 0)),
        written=Bytes(sum(map(_bytes, event["outputs"]))),
        inputs=_last(inputs),
        outputs=_last(event["outputs"]),
    )


def _numerics(event: Event) -> str:
    told = {
        Arithmetic.CONVERSION: "conversion",
        Arithmetic.INTEGER: str(Precision.INT8_STATIC),
    }
    return told.get(arithmetic(event), str(Precision.FP32))


def _reads_integers(event: Event) -> bool:
    return bool(event["inputs"]) and event["inputs"][0][0] in INTEGER_TYPES


def _bytes(tensor: Tensor) -> int:
    kind, shape = tensor
    return math.prod(shape) * SIZES.get(kind, 4) if kind else 0


def _last(tensors: Sequence[Tensor]) -> int:
    shape = tensors[0][1] if tensors else ()
    return shape[-1] if shape else 1
