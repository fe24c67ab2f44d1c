"""Reads from a .tflite how each matrix is stored: quantizers skip in silence what they cannot."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from edgebuild.vocabulary.units import Bytes
from edgebuild.vocabulary.weight_format import WeightFormat

_TYPES = {code: name for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
_OPERATORS = {
    code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)
}
_FLOATS = {"FLOAT32": "fp32", "FLOAT16": "fp16"}
_LOOK_UP = "EMBEDDING_LOOKUP"


@dataclass(frozen=True)
class TfliteMatrix:
    """A constant with two axes, as an operator reads it.

    Attributes:
        name: the tensor's, as the converter has called it.
        subgraph: "decode", or "prefill_128", or a function of those.
        number: of the buffer with its bytes; signatures share buffers.
        shape: rows and columns.
        layout: "int4-g32", "fp32"; of what no language model needs, the format's own word.
    """

    name: str
    subgraph: str
    operator: str
    number: int
    shape: tuple[int, int]
    layout: str

    @property
    def size(self) -> Bytes:
        return WeightFormat.parse(self.layout).size(*self.shape)

    @property
    def is_looked_up(self) -> bool:
        return self.operator == _LOOK_UP


def read_matrices(path: Path) -> list[TfliteMatrix]:
    """Every constant matrix of every operator in every signature."""
    model = flatbuffer_utils.read_model(str(path))
    return [
        found
        for subgraph in model.subgraphs
        for operator in subgraph.operators
        for found in _matrices(model, subgraph, operator)
    ]


def _matrices(model: Any, subgraph: Any, operator: Any) -> Iterator[TfliteMatrix]:
    code = model.operatorCodes[operator.opcodeIndex]
    for number in operator.inputs:
        if number < 0:
            continue
        tensor = subgraph.tensors[number]
        data = model.buffers[tensor.buffer].data
        shape = [] if tensor.shape is None else [int(size) for size in tensor.shape]
        # A vector may carry axes of one.
        if data is None or len(data) == 0 or sum(size > 1 for size in shape) < 2:
            continue
        yield TfliteMatrix(
            name=tensor.name.decode(),
            subgraph=subgraph.name.decode(),
            operator=_OPERATORS[max(code.builtinCode, code.deprecatedBuiltinCode)],
            number=int(tensor.buffer),
            shape=(math.prod(shape[:-1]), shape[-1]),
            layout=_layout(tensor),
        )


def _layout(tensor: Any) -> str:
    kind = _TYPES[tensor.type]
    about = tensor.quantization
    blocks = schema.QuantizationDetails.BlockwiseQuantization
    if kind == "INT4" and about is not None and about.detailsType == blocks:
        return f"int4-g{about.details.blockSize}"
    return _FLOATS.get(kind) or f"{kind} by channel"
