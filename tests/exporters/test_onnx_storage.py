"""Weights that are stored narrow come back as the numbers that they were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies
from onnx import TensorProto, helper, numpy_helper

from edgebuild.exporters._onnx_storage import (
    LARGEST_FP8,
    four_bit_grid,
    pack_four_bit,
    store_as_fp8,
    store_as_signs,
    widen_at_load,
)
from edgebuild.vocabulary.precision import FOUR_BIT_STEPS

OPSET = 21
FOUR_BIT = st.integers(-FOUR_BIT_STEPS, FOUR_BIT_STEPS)
SHAPES = numpy_strategies.array_shapes(min_dims=1, max_dims=4, max_side=5)


def constant_model(values: np.ndarray) -> onnx.ModelProto:
    """A model that returns its one constant."""
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    node = helper.make_node("Identity", ["weight"], ["out"])
    out = helper.make_tensor_value_info("out", kind, values.shape)
    constant = numpy_helper.from_array(values, "weight")
    graph = helper.make_graph([node], "constant", [], [out], [constant])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def returned_by(model: onnx.ModelProto) -> np.ndarray:
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {})[0])


@given(values=numpy_strategies.arrays(np.int8, SHAPES, elements=FOUR_BIT))
def test_four_bit_weights_come_back_exactly(values: np.ndarray) -> None:
    model = constant_model(values)
    pack_four_bit(model, ["weight"])
    (stored,) = model.graph.initializer
    assert stored.data_type == TensorProto.INT4
    assert len(stored.raw_data) == (values.size + 1) // 2
    np.testing.assert_array_equal(returned_by(model), values)


def test_a_weight_beyond_the_four_bit_grid_is_not_packed() -> None:
    model = constant_model(np.array([0, FOUR_BIT_STEPS + 1], np.int8))
    with pytest.raises(AssertionError, match="weight is not on the four-bit grid"):
        pack_four_bit(model, ["weight"])


@given(values=numpy_strategies.arrays(np.float16, SHAPES, elements=st.floats(-100, 100, width=16)))
def test_weights_that_fit_into_halves_come_back_exactly(values: np.ndarray) -> None:
    wide = values.astype(np.float32)
    model = constant_model(wide)
    widen_at_load(model, ["weight"])
    assert model.graph.initializer[0].data_type == TensorProto.FLOAT16
    np.testing.assert_array_equal(returned_by(model), wide)


def test_the_largest_weight_of_every_channel_lies_on_the_last_step() -> None:
    weights = np.array([[0.5, -3.5], [14.0, 7.0], [0.0, 0.0]], np.float32)
    grid = four_bit_grid(constant_model(weights), "weight")
    scales = np.array([channel["scale"] for channel in grid])
    np.testing.assert_allclose(scales[:2], [0.5, 2.0])
    assert np.isfinite(weights[2] / scales[2]).all()
    assert all(channel["zero_point"] == 0 and channel["axis"] == 0 for channel in grid)


# The operator that reads a weight, its output channels' axis, and a shape.
READERS = {
    "Conv": (0, (3, 2, 2, 2)),
    "ConvTranspose": (1, (2, 3, 2, 2)),
    "MatMul": (1, (4, 3)),
}
WEIGHTS = st.floats(-10, 10, width=32)


def layer_model(kind: str, weights: np.ndarray) -> onnx.ModelProto:
    """A model that shows its weight beside a layer that reads it."""
    shape = (1, 4) if kind == "MatMul" else (1, 2, 4, 4)
    nodes = [
        helper.make_node(kind, ["x", "weight"], ["y"], name="layer"),
        helper.make_node("Identity", ["weight"], ["out"], name="show"),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
        for name, dims in (("x", shape), ("y", (None,) * len(shape)), ("out", weights.shape))
    ]
    constant = numpy_helper.from_array(weights, "weight")
    graph = helper.make_graph(nodes, "layer", values[:1], values[1:], [constant])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def weights_in(model: onnx.ModelProto) -> np.ndarray:
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (given,) = session.get_inputs()
    return np.asarray(session.run(["out"], {"x": np.ones(given.shape, np.float32)})[0])


@pytest.mark.parametrize("kind", READERS)
@given(data=st.data())
def test_eight_bit_floats_are_near_for_every_channel(kind: str, data: st.DataObject) -> None:
    axis, shape = READERS[kind]
    weights = data.draw(numpy_strategies.arrays(np.float32, shape, elements=WEIGHTS))
    model = layer_model(kind, weights)
    store_as_fp8(model, ["weight"])
    stored = next(t for t in model.graph.initializer if t.name == "weight_stored")
    assert stored.data_type == TensorProto.FLOAT8E4M3FN
    assert len(stored.raw_data) == weights.size
    others = tuple(other for other in range(weights.ndim) if other != axis)
    largest = np.abs(weights).max(axis=others, keepdims=True)
    # Three bits behind the point, and steps of 2^-9 below the smallest normal number.
    limit = np.maximum(np.abs(weights) / 16, largest / LARGEST_FP8 * 2.0**-10) * 1.001 + 1e-30
    assert (np.abs(weights_in(model) - weights) <= limit).all()


@pytest.mark.parametrize("kind", READERS)
@given(data=st.data())
def test_signs_come_back_with_the_mean_magnitude_of_their_channel(
    kind: str, data: st.DataObject
) -> None:
    axis, shape = READERS[kind]
    weights = data.draw(numpy_strategies.arrays(np.float32, shape, elements=WEIGHTS))
    model = layer_model(kind, weights)
    store_as_signs(model, ["weight"])
    stored = next(t for t in model.graph.initializer if t.name == "weight_stored")
    assert len(stored.raw_data) == (weights.size + 7) // 8
    others = tuple(other for other in range(weights.ndim) if other != axis)
    magnitudes = np.abs(weights).mean(axis=others, keepdims=True)
    wanted = np.where(weights >= 0, magnitudes, -magnitudes)
    np.testing.assert_allclose(weights_in(model), wanted, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("store", [store_as_fp8, store_as_signs])
def test_nothing_is_left_to_compute_once_the_model_is_loaded(
    store: Callable[[onnx.ModelProto, list[str]], None], tmp_path: Path
) -> None:
    model = layer_model("MatMul", np.ones((4, 3), np.float32))
    del model.graph.node[1:], model.graph.output[1:]
    store(model, ["weight"])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    optimized = onnx.load(tmp_path / "optimized.onnx")
    assert [node.op_type for node in optimized.graph.node] == ["MatMul"]


def test_two_weights_share_the_constants_that_unpack_their_signs() -> None:
    model = layer_model("MatMul", np.ones((4, 3), np.float32))
    other = numpy_helper.from_array(np.full((4, 3), -2, np.float32), "other")
    model.graph.initializer.append(other)
    model.graph.node.append(helper.make_node("MatMul", ["x", "other"], ["z"], name="second"))
    store_as_signs(model, ["weight", "other"])
    names = [tensor.name for tensor in model.graph.initializer]
    assert len(names) == len(set(names))
    assert (weights_in(model) == 1).all()
