"""What is done to ONNX graphs keeps their meaning and respects float layers."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgebuild.exporters._onnx_graph import (
    forget_origins,
    gemm_to_matmul,
    integer_neighbors,
)

OPSET = 21
GENERATOR = np.random.default_rng(0)


def model_of(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    inputs: dict[str, tuple[int, ...]],
    output: str,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def computed(model: onnx.ModelProto, **inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, inputs)[0])


def random(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal(shape).astype(np.float32)


def gemm(has_bias: bool, **attributes: object) -> onnx.ModelProto:
    is_transposed = attributes.get("transB")
    constants = {"weight": random(5, 4) if is_transposed else random(4, 5)}
    constants |= {"bias": random(5)} if has_bias else {}
    node = helper.make_node("Gemm", ["x", *constants], ["y"], name="layer", **attributes)
    inputs = {"x": (4, 3) if attributes.get("transA") else (3, 4)}
    return model_of([node], constants, inputs, "y")


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_a_gemm_as_matmul_means_the_same(has_bias: bool, trans_b: int) -> None:
    model = gemm(has_bias, transB=trans_b)
    x = random(3, 4)
    before = computed(model, x=x)
    gemm_to_matmul(model.graph)
    assert kinds(model) == (["MatMul", "Add"] if has_bias else ["MatMul"])
    np.testing.assert_allclose(computed(model, x=x), before, rtol=1e-5, atol=1e-6)
    names = {tensor.name for tensor in model.graph.initializer}
    assert ("weight_transposed" if trans_b else "weight") in names
    assert model.graph.node[0].name == "layer"


@pytest.mark.parametrize("attribute", [{"alpha": 0.5}, {"beta": 2.0}, {"transA": 1}])
def test_a_gemm_that_does_more_stays_as_it_is(attribute: dict[str, float]) -> None:
    model = gemm(has_bias=True, **attribute)
    gemm_to_matmul(model.graph)
    assert kinds(model) == ["Gemm"]


def test_a_gemm_of_two_computed_matrices_stays_as_it_is() -> None:
    node = helper.make_node("Gemm", ["a", "b"], ["y"], name="product")
    model = model_of([node], {}, {"a": (3, 4), "b": (4, 5)}, "y")
    gemm_to_matmul(model.graph)
    assert kinds(model) == ["Gemm"]


def test_a_weight_that_two_gemms_share_is_transposed_once() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "weight"], ["a"], name="first", transB=1),
        helper.make_node("Gemm", ["a", "weight"], ["y"], name="second", transB=1),
    ]
    model = model_of(nodes, {"weight": random(4, 4)}, {"x": (3, 4)}, "y")
    x = random(3, 4)
    before = computed(model, x=x)
    gemm_to_matmul(model.graph)
    np.testing.assert_allclose(computed(model, x=x), before, rtol=1e-5, atol=1e-6)
    assert [tensor.name for tensor in model.graph.initializer] == ["weight_transposed"]


def three_layers() -> onnx.ModelProto:
    """first, a pool and relu; second, a relu and a sum with the first; third, a softmax."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="first"),
        helper.make_node("MaxPool", ["a"], ["b"], name="pool", kernel_shape=[1, 1]),
        helper.make_node("Relu", ["b"], ["c"], name="relu_of_first"),
        helper.make_node("Conv", ["c", "w2"], ["d"], name="second"),
        helper.make_node("Relu", ["d"], ["e"], name="relu_of_second"),
        helper.make_node("Add", ["c", "e"], ["f"], name="sum"),
        helper.make_node("Conv", ["f", "w3"], ["g"], name="third"),
        helper.make_node("Softmax", ["g"], ["h"], name="softmax"),
        helper.make_node("Relu", ["h"], ["y"], name="relu_of_softmax"),
    ]
    constants = {name: random(2, 2, 1, 1) for name in ("w1", "w2", "w3")}
    return model_of(nodes, constants, {"x": (1, 2, 4, 4)}, "y")


def test_glue_between_integer_layers_is_integer() -> None:
    found = integer_neighbors(three_layers().graph, ["first", "second", "third"])
    assert found == ["pool", "relu_of_first", "relu_of_second", "sum"]


def test_what_follows_a_float_layer_stays_float() -> None:
    found = integer_neighbors(three_layers().graph, ["first", "third"])
    assert found == ["pool", "relu_of_first"]


def test_nothing_is_integer_around_float_layers() -> None:
    assert integer_neighbors(three_layers().graph, []) == []


def test_origins_are_forgotten() -> None:
    model = three_layers()
    for node in model.graph.node:
        node.doc_string = "a trace"
        node.metadata_props.add(key="source", value="/a/path.py")
    model.metadata_props.add(key="source", value="/a/path.py")
    forget_origins(model)
    assert b"/a/path.py" not in model.SerializeToString()
    assert b"a trace" not in model.SerializeToString()
