"""Reads a TFLite file: its layers by site, what lies between them, and how each is stored."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.tools import flatbuffer_utils
from ai_edge_quantizer import qtyping
from ai_edge_quantizer.utils import tfl_flatbuffer_utils as flatbuffer

from edgebuild.vocabulary.errors import NotExportable
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.program import Program

_TYPE = qtyping.TensorType
_DTYPES = {
    _TYPE.FLOAT32: np.float32, _TYPE.INT32: np.int32, _TYPE.INT64: np.int64,
    _TYPE.BOOL: np.bool_, _TYPE.INT8: np.int8, _TYPE.UINT8: np.uint8,
}  # fmt: skip
_WEIGHT_INPUT = {
    "CONV_2D": 1,
    "CONV_3D": 1,
    "DEPTHWISE_CONV_2D": 1,
    "TRANSPOSE_CONV": 1,
    "FULLY_CONNECTED": 1,
    "EMBEDDING_LOOKUP": 1,
    "GATHER": 0,
}
_ACTIVATION_INPUT = {"TRANSPOSE_CONV": 2, "EMBEDDING_LOOKUP": 0, "GATHER": 1}
_OPERATOR_NAMES = {
    code: name for name, code in vars(qtyping.BuiltinOperator).items() if isinstance(code, int)
}
_NODE = re.compile(r"node:([^;]*);")


@contextmanager
def node_names() -> Iterator[None]:
    """Has litert_torch name tensors by the captured operators that they came from.

    By itself it notes each module's class and last attribute only, so that two layers can come
    out under one name.
    """
    from litert_torch.backend.debuginfo import _build

    original = _build._get_hierarchy
    _build._get_hierarchy = lambda node: f"node:{_build._get_canoical_nodename(node)};"
    try:
        yield
    finally:
        _build._get_hierarchy = original


def flatten_biases(path: Path) -> None:
    """Gives every fully connected layer a bias of one dimension.

    The converter leaves some as (1, 1, 1, n), which run in float but make the quantizer write
    per-channel scales along a dimension of one.
    """
    model = flatbuffer_utils.read_model(path)
    biases = [
        subgraph.tensors[operator.inputs[2]]
        for subgraph in model.subgraphs
        for operator in subgraph.operators
        if _operator_name(model, operator) == "FULLY_CONNECTED" and operator.inputs[-1] >= 0
    ]
    for bias in biases:
        bias.shape = [int(np.prod(bias.shape))]
    flatbuffer_utils.write_model(model, path)


def _operator_name(model: Any, operator: Any) -> str:
    return str(_OPERATOR_NAMES[model.operatorCodes[operator.opcodeIndex].builtinCode])


@dataclass(frozen=True)
class TfliteOperator:
    """One operator; `scope` is the quantizer's name for it, `site` is empty without weights."""

    index: int
    name: str
    scope: str
    site: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    is_float: bool


class Graph:
    """What the recipe and its check need of a model's one subgraph."""

    def __init__(self, model: Any, program: Program) -> None:
        self._model = model
        self._sites = {node: site.path for site, nodes in program.nodes.items() for node in nodes}
        self._order = {node.name: i for i, node in enumerate(program.exported.graph.nodes)}
        definition = model.signatureDefs[0]
        self.signature: str = definition.signatureKey.decode()
        self._subgraph = model.subgraphs[definition.subgraphIndex]
        # The subgraph keeps the network's order; the signature sorts by name.
        inputs = {int(entry.tensorIndex): entry.name.decode() for entry in definition.inputs}
        outputs = {int(entry.tensorIndex): entry.name.decode() for entry in definition.outputs}
        if set(inputs) != set(map(int, self._subgraph.inputs)) or (
            set(outputs) != set(map(int, self._subgraph.outputs))
        ):
            raise NotExportable(
                "tflite: one output is also an input or another output, and the converter gives "
                "both one tensor; let the network return them once"
            )
        self.input_names = tuple(inputs[int(tensor)] for tensor in self._subgraph.inputs)
        self.output_names = tuple(outputs[int(tensor)] for tensor in self._subgraph.outputs)

    @classmethod
    def read(cls, path: Path, program: Program) -> Graph:
        return cls(flatbuffer_utils.read_model(path), program)

    @cached_property
    def operators(self) -> list[TfliteOperator]:
        return [self._operator(*item) for item in enumerate(self._subgraph.operators)]

    @cached_property
    def weighted(self) -> list[TfliteOperator]:
        """The operators with constant weights that belong to a site, in order of execution."""
        return [operator for operator in self.operators if operator.site]

    def layers_in_order(self) -> dict[str, str]:
        """The site of every operator with weights, by its number, name and storage.

        The site is empty for weights that are no layer's own, such as those of an einsum.
        """
        carriers = [
            operator
            for operator in self.operators
            if self._weight(operator.name, operator.inputs) is not None
        ]
        return {f"{o.index} {o.name} {self.storage(o)}": o.site for o in carriers}

    def origins(self, name: str) -> list[str]:
        """The captured operators that became operators of the given TFLite name."""
        scopes = [operator.scope for operator in self.operators if operator.name == name]
        return sorted({node for scope in scopes for node in _NODE.findall(scope)})

    @property
    def outputs(self) -> set[int]:
        return {int(tensor) for tensor in self._subgraph.outputs}

    @property
    def interface(self) -> list[tuple[int, list[int]]]:
        """Types and shapes of the inputs, then of the outputs."""
        tensors = [*self._subgraph.inputs, *self._subgraph.outputs]
        return [(self._type(t), list(self._subgraph.tensors[t].shape)) for t in tensors]

    def neighbors(self, operator: TfliteOperator) -> set[int]:
        """The operators that compute its inputs or read its outputs."""
        made = {self._producers[t] for t in operator.inputs if t in self._producers}
        read = {n for t in operator.outputs for n in self._consumers[t]}
        return (made | read) - {operator.index}

    def storage(self, operator: TfliteOperator) -> str:
        """How a layer stores its weights and takes its activation; a Precision where it is one."""
        weight = self._weight(operator.name, operator.inputs)
        assert weight is not None
        stored = self._type(weight)
        widened = weight not in operator.inputs
        activation = self._type(operator.inputs[_ACTIVATION_INPUT.get(operator.name, 0)])
        if stored == _TYPE.FLOAT32:
            return Precision.FP32
        if stored == _TYPE.FLOAT16:
            return Precision.FP16
        if widened:
            return "integers that are widened to float"
        if stored == _TYPE.INT4:
            return Precision.INT4_WEIGHTS
        if stored == _TYPE.INT8 and activation == _TYPE.INT8:
            return Precision.INT8_STATIC
        if stored == _TYPE.INT8 and activation == _TYPE.INT16:
            return Precision.INT16_ACTIVATIONS
        return Precision.INT8_DYNAMIC if stored == _TYPE.INT8 else f"TFLite type {stored}"

    def named_inputs(self, row: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """One sample, in the network's order, as the quantizer wants it."""
        return {
            name: value.astype(_DTYPES[self._type(int(tensor))], copy=False)
            for name, tensor, value in zip(
                self.input_names, self._subgraph.inputs, row, strict=True
            )
        }

    def _operator(self, index: int, operator: Any) -> TfliteOperator:
        name = _operator_name(self._model, operator)
        inputs = tuple(int(tensor) for tensor in operator.inputs if tensor >= 0)
        outputs = tuple(int(tensor) for tensor in operator.outputs)
        return TfliteOperator(
            index=index,
            name=name,
            scope=flatbuffer.get_op_scope(operator, self._subgraph.tensors),
            site=self._site(name, inputs, outputs),
            inputs=inputs,
            outputs=outputs,
            is_float=all(self._type(tensor) == _TYPE.FLOAT32 for tensor in outputs),
        )

    def _site(self, name: str, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> str:
        """The site whose weights the operator carries.

        The weight's own name is the best witness, but a weight folded with a constant may have
        lost it; a model output's name lists nothing. A name lists its layer, what was fused into
        it, and earlier layers that share a subexpression, so the last layer in it is the one.
        """
        if self._weight(name, inputs) is None:
            return ""
        # A constant that several operators read was merged of equal ones and names them all.
        own = [t for t in inputs[_WEIGHT_INPUT[name] :] if len(self._consumers[t]) == 1]
        for tensor in (*own, *outputs, *inputs[_WEIGHT_INPUT[name] :]):
            nodes = [node for node in _NODE.findall(self._name(tensor)) if node in self._sites]
            if nodes:
                return self._sites[max(nodes, key=self._order.__getitem__)]
        return ""

    def _weight(self, name: str, inputs: Sequence[int]) -> int | None:
        """The constant that holds the weights, before any conversion."""
        if name not in _WEIGHT_INPUT:
            return None
        tensor = inputs[_WEIGHT_INPUT[name]]
        producer = self._producers.get(tensor)
        if producer is not None:
            source = self._subgraph.operators[producer]
            if _operator_name(self._model, source) != "DEQUANTIZE":
                return None
            tensor = int(source.inputs[0])
        data = self._model.buffers[self._subgraph.tensors[tensor].buffer].data
        return tensor if data is not None and len(data) else None

    @cached_property
    def _producers(self) -> Mapping[int, int]:
        return {
            int(tensor): index
            for index, operator in enumerate(self._subgraph.operators)
            for tensor in operator.outputs
        }

    @cached_property
    def _consumers(self) -> Mapping[int, list[int]]:
        consumers: defaultdict[int, list[int]] = defaultdict(list)
        for index, operator in enumerate(self._subgraph.operators):
            for tensor in operator.inputs:
                consumers[int(tensor)].append(index)
        return consumers

    def _type(self, tensor: int) -> int:
        return int(self._subgraph.tensors[tensor].type)

    def _name(self, tensor: int) -> str:
        return str(flatbuffer.get_tensor_name(self._subgraph.tensors[tensor]))
