"""Tells the TFLite quantizer which operator gets which precision, by the operators' full names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ai_edge_quantizer import qtyping
from ai_edge_quantizer.algorithm_manager import AlgorithmName

from edgebuild.exporters._tflite_graph import Graph, TfliteOperator
from edgebuild.vocabulary.precision import LayerKind, Precision
from edgebuild.vocabulary.program import Site

# Operators that carry no weights and that XNNPACK computes in int8.
GLUE = {
    "ADD", "AVERAGE_POOL_2D", "CONCATENATION", "LOGISTIC", "MAX_POOL_2D", "MEAN", "MUL", "PACK",
    "PAD", "PADV2", "RELU", "RESHAPE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "SLICE",
    "SPLIT", "STRIDED_SLICE", "SUB", "TANH", "TRANSPOSE", "UNPACK",
}  # fmt: skip
# Float operators that may border integer glue: XNNPACK refuses int8 HARD_SWISH, but turns a
# dequantize, a float unary operator and a quantize into one table.
ISLANDS = {"HARD_SWISH"}
# Where the quantizer has another name for an operator than the format.
QUANTIZER_NAMES = {"TRANSPOSE_CONV": qtyping.TFLOperationName.CONV_2D_TRANSPOSE}


def add_rules(worker: Any, graph: Graph, precisions: Mapping[Site, Precision]) -> None:
    """One rule per operator type and precision, naming every operator in full.

    So no pattern can catch a neighbor (`conv1` never matches `conv10`). A rule per operator would
    be clearer, but the quantizer tries every rule on every operator.
    """
    for precision, operators in _assignments(graph, precisions).items():
        by_type: dict[str, list[str]] = defaultdict(list)
        for operator in operators:
            by_type[operator.name].append(re.escape(operator.scope))
        for name, scopes in by_type.items():
            operation = QUANTIZER_NAMES.get(name) or qtyping.TFLOperationName(name)
            _add_rule(worker, precision, f"^(?:{'|'.join(scopes)})$", operation)


def _add_rule(worker: Any, precision: Precision, scopes: str, operation: Any) -> None:
    if precision is Precision.FP16:
        worker.add_weight_only_config(
            scopes, operation, num_bits=16, algorithm_key=AlgorithmName.FLOAT_CASTING
        )
    elif precision is Precision.INT8_STATIC:
        worker.add_static_config(scopes, operation, activation_num_bits=8, weight_num_bits=8)
    elif precision is Precision.INT16_ACTIVATIONS:
        worker.add_static_config(scopes, operation, activation_num_bits=16, weight_num_bits=8)
    elif precision is Precision.INT8_DYNAMIC:
        worker.add_dynamic_config(scopes, operation, num_bits=8)
    elif precision is Precision.INT4_WEIGHTS:
        worker.add_dynamic_config(scopes, operation, num_bits=4)


def _assignments(
    graph: Graph, precisions: Mapping[Site, Precision]
) -> Mapping[Precision, list[TfliteOperator]]:
    wanted = {site.path: precision for site, precision in precisions.items()}
    kinds = {site.path: site.kind for site in precisions}
    assigned: dict[Precision, list[TfliteOperator]] = defaultdict(list)
    for operator in graph.weighted:
        precision = wanted.get(operator.site, Precision.FP32)
        if precision is not Precision.FP32:
            assigned[precision].append(operator)
    # A state that is rounded at every step drifts, so nothing at a recurrent layer is glue.
    calm = [o for o in graph.weighted if kinds.get(o.site) is not LayerKind.RECURRENT]
    for precision in (Precision.INT8_STATIC, Precision.INT16_ACTIVATIONS):
        assigned[precision] += _integer_glue(graph, calm, assigned[precision])
    return assigned


def _integer_glue(
    graph: Graph, calm: Sequence[TfliteOperator], static: Sequence[TfliteOperator]
) -> list[TfliteOperator]:
    """The weightless operators that keep integer layers in one integer region.

    Glue operators that feed each other stand or fall together. A group is integer when it touches
    a static layer and otherwise only layers, inputs and outputs. If it touches anything else
    (softmax, batched matrix products, the inverse root of a LayerNorm), it is part of a float
    computation that would gain nothing and lose digits: so a convolutional network becomes one
    region, and a transformer keeps integers to its matrix products.
    """
    layers = {operator.index for operator in graph.weighted}
    integer_layers = {operator.index for operator in static}
    islands = {operator.index for operator in graph.operators if operator.name in ISLANDS}
    allowed = {operator.index for operator in calm} | islands
    integer: list[TfliteOperator] = []
    for group in _glue_groups(graph, layers):
        inside = {operator.index for operator in group}
        border = {n for operator in group for n in graph.neighbors(operator)} - inside
        if border <= allowed and border & integer_layers:
            integer += [operator for operator in group if not _loses_output(graph, operator)]
    return integer


def _loses_output(graph: Graph, operator: TfliteOperator) -> bool:
    """Whether the quantizer would make a model output int8.

    Release 0.10 rescales a concatenation's inputs, and lists the rescaled copy as the model's
    output where an input is one too.
    """
    return operator.name == "CONCATENATION" and bool(graph.outputs & set(operator.inputs))


def _glue_groups(graph: Graph, layers: set[int]) -> Iterator[list[TfliteOperator]]:
    glue = {
        operator.index: operator
        for operator in graph.operators
        if operator.name in GLUE and operator.index not in layers and operator.is_float
    }
    while glue:
        group, frontier = [], [glue.popitem()[1]]
        while frontier:
            operator = frontier.pop()
            group.append(operator)
            frontier += [glue.pop(index) for index in graph.neighbors(operator) if index in glue]
        yield group
