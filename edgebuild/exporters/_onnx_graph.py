"""Finds each site's nodes in an exported ONNX graph, and what lies between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgebuild.vocabulary.program import Program, Site

# Operators that cost nothing extra on integers between two integer layers.
GLUE = {
    "Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "MaxPool", "Pad",
    "ReduceMean", "Relu", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Transpose",
    "Unsqueeze",
}  # fmt: skip

# A stored weight's name: its site, and the nodes that compute with it.
Weights = Mapping[str, tuple[Site, tuple[str, ...]]]


def weights_of_sites(model: onnx.ModelProto, program: Program) -> Weights:
    """Finds every site's weight matrices or kernels.

    A weight is recognized by the parameter's name where it was kept (also when BatchNorm was
    folded into it), else by the captured operator that its node says it came from.
    """
    by_operator = {name: site for site, names in program.nodes.items() for name in names}
    matrices = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) >= 2}
    found: dict[str, tuple[Site, tuple[str, ...]]] = {}
    for node in model.graph.node:
        # The fourth input of a recurrent layer is its biases, as a matrix.
        for name in matrices.intersection(node.input[:3]):
            # A merged weight bears one layer's name; the operator knows whose it is here.
            site = by_operator.get(_captured_operator(node)) or program.weights.get(name)
            if site is not None:
                _, nodes = found.get(name, (site, ()))
                found[name] = (site, (*nodes, node.name))
    return found


def _captured_operator(node: onnx.NodeProto) -> str:
    """The last of the scopes that torch's exporter notes on every node."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            return str(entry.value).strip("[]").split(",")[-1].strip(" '\"")
    return ""


def integer_neighbors(graph: onnx.GraphProto, layers: Iterable[str]) -> list[str]:
    """The glue whose every computed input comes from the given integer layers, or from such glue.

    So a float layer's surroundings stay float, and an integer region is not left inside.
    """
    constants = {tensor.name for tensor in graph.initializer} | {""}
    integer_nodes = set(layers)
    integer_tensors: set[str] = set()
    glue = []
    for node in graph.node:
        computed = [name for name in node.input if name not in constants]
        joins = node.op_type in GLUE and computed and integer_tensors.issuperset(computed)
        if joins:
            glue.append(node.name)
        if joins or node.name in integer_nodes:
            integer_tensors.update(node.output)
    return glue


def separate_weights(model: onnx.ModelProto, program: Program) -> None:
    """Gives every site a weight of its own where the exporter merged equal ones."""
    graph = model.graph
    matrices = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) >= 2}
    by_operator = {name: site for site, names in program.nodes.items() for name in names}
    owner: dict[str, Site] = {}
    for node in graph.node:
        site = by_operator.get(_captured_operator(node))
        for position, name in enumerate(node.input):
            if site is None or name not in matrices or owner.setdefault(name, site) == site:
                continue
            copied = f"{name}_of_{site.path}"
            if copied not in owner:
                owner[copied] = site
                graph.initializer.add().CopyFrom(matrices[name])
                graph.initializer[-1].name = copied
            node.input[position] = copied


def gemm_to_matmul(graph: onnx.GraphProto) -> None:
    """Rewrites every Gemm with constant weights as MatMul and Add, which mean the same.

    Dynamic and four-bit kernels exist for MatMul alone. Names of nodes stay; a transposed weight
    is a new one, made once, because other nodes may read the old one.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    rewritten: list[onnx.NodeProto] = []
    for node in graph.node:
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        weight = constants.get(node.input[1]) if node.op_type == "Gemm" else None
        plain = not attributes.get("transA") and attributes.get("alpha", 1.0) == 1.0
        if weight is None or not plain or attributes.get("beta", 1.0) != 1.0:
            rewritten.append(node)
            continue
        if attributes.get("transB"):
            name = f"{weight.name}_transposed"
            if name not in constants:
                transposed = np.ascontiguousarray(numpy_helper.to_array(weight).T)
                constants[name] = numpy_helper.from_array(transposed, name)
            node.input[1] = name
        rewritten += _matmul_and_add(node)
    del graph.node[:]
    graph.node.extend(rewritten)
    read = {name for node in rewritten for name in node.input}
    del graph.initializer[:]
    graph.initializer.extend(tensor for name, tensor in constants.items() if name in read)


def _matmul_and_add(gemm: onnx.NodeProto) -> list[onnx.NodeProto]:
    has_bias = len(gemm.input) == 3
    product = f"{gemm.output[0]}_product" if has_bias else gemm.output[0]
    matmul = helper.make_node("MatMul", gemm.input[:2], [product], name=gemm.name)
    matmul.metadata_props.extend(gemm.metadata_props)
    if not has_bias:
        return [matmul]
    bias = helper.make_node(
        "Add", [product, gemm.input[2]], [gemm.output[0]], name=f"{gemm.name}_bias"
    )
    return [matmul, bias]


def forget_origins(model: onnx.ModelProto) -> None:
    """Drops what torch notes on every node for debugging: stack traces, and the paths in them."""
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
