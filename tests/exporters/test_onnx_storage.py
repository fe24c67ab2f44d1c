"""Weights that are stored narrow come back as the numbers that they were."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies
from onnx import TensorProto, helper, numpy_helper

from edgebuild.exporters._onnx_storage import (
    FOUR_BIT_STEPS,
    four_bit_grid,
    pack_four_bit,
    widen_at_load,
)

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
