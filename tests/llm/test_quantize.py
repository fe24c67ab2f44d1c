"""Rounded weights are bit-equal from both kernels, and what onnxruntime computes with."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgebuild.llm import _kernels_numba, _kernels_numpy
from edgebuild.llm.quantize import Packed, dequantize, kernels, quantize, unpack
from edgebuild.vocabulary.weight_format import BLOCKS, INTEGER_BITS, WeightFormat

Floats = NDArray[np.float32]

LAYOUTS = [
    WeightFormat(bits, block, is_symmetric)
    for bits in INTEGER_BITS
    for block in BLOCKS
    for is_symmetric in (True, False)
]


def heavy_tailed(rows: int, inputs: int, seed: int = 0) -> Floats:
    drawn = np.random.default_rng(seed)
    return (drawn.standard_t(5, size=(rows, inputs)) * 0.02).astype(np.float32)


def importance_of(inputs: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).gamma(0.5, size=inputs).astype(np.float32) + 0.01


def test_the_compiled_kernels_are_used() -> None:
    assert kernels() is _kernels_numba


@given(
    layout=st.sampled_from(LAYOUTS),
    scale_bits=st.sampled_from([16, 32]),
    rows=st.integers(1, 5),
    inputs=st.integers(1, 300),
    exponent=st.integers(-12, 4),
    zeroed=st.floats(0, 1),
    is_searched=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_both_kernels_give_the_same_bits(
    layout: WeightFormat,
    scale_bits: int,
    rows: int,
    inputs: int,
    exponent: int,
    zeroed: float,
    is_searched: bool,
    seed: int,
) -> None:
    layout = WeightFormat(layout.bits, layout.block, layout.is_symmetric, scale_bits)
    drawn = np.random.default_rng(seed)
    weights = drawn.standard_t(3, size=(rows, inputs)) * 10.0**exponent
    weights[drawn.random(weights.shape) < zeroed] = -0.0
    weights = weights.astype(np.float32)
    importance = importance_of(inputs, seed) if is_searched else None
    slow = quantize(weights, layout, importance, _kernels_numpy)
    fast = quantize(weights, layout, importance, _kernels_numba)
    for one, other in zip(arrays(slow), arrays(fast), strict=True):
        assert one.tobytes() == other.tobytes()
    assert sum(array.nbytes for array in arrays(fast)) == layout.size(rows, inputs)


def test_both_kernels_halve_and_invert_alike() -> None:
    """All kinds of floats: subnormal halves, ties, and what no half is as large as."""
    every = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    every = every[np.isfinite(every)]
    between = (every[:-1] + every[1:]) / 2
    drawn = np.random.default_rng(0).integers(0, 2**32, 100_000, np.uint32).view(np.float32)
    edges = np.array(
        [0, -0.0, 65519, 65520, -65520, 1e30, 2**-25, 2**-14, 1e-30, 1e-38], np.float32
    )
    values = np.concatenate([every, between, drawn[np.isfinite(drawn)], edges])[None]
    for name in ("halved", "inverted"):
        slow, fast = (getattr(one, name)(values) for one in (_kernels_numpy, _kernels_numba))
        np.testing.assert_array_equal(slow.view(np.uint32), fast.view(np.uint32))


def test_both_kernels_widen_alike() -> None:
    halves = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    found = [np.empty(halves.shape, np.float32) for _ in range(2)]
    _kernels_numpy.widen(halves, found[0])
    _kernels_numba.widen(halves, found[1])
    assert found[0].tobytes() == found[1].tobytes()


def arrays(packed: Packed) -> list[NDArray[np.generic]]:
    found = [packed.codes, packed.scales, packed.zero_points]
    return [array for array in found if array is not None]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_no_weight_moves_by_more_than_a_step(layout: WeightFormat) -> None:
    weights = heavy_tailed(8, 512)
    packed = quantize(weights, layout)
    off = np.abs(dequantize(packed, layout, 512) - weights)
    step = np.repeat(np.abs(packed.scales.astype(np.float32)), layout.block, axis=1)
    # Half a step; a whole one where the code of the greatest magnitude is not there, and a bit
    # more as the scales are rounded, too.
    assert (off <= 1.01 * step + 1e-3 * np.abs(weights).max()).all()


def test_the_first_weight_is_in_the_lowest_bits() -> None:
    weights = np.zeros((1, 32), np.float32)
    weights[0, :3] = (-8, 7, 1)
    packed = quantize(weights, WeightFormat(4, 32))
    assert packed.scales[0, 0] == 1
    assert packed.codes[0, 0, :2].tolist() == [0 | 15 << 4, 9 | 8 << 4]
    assert unpack(packed.codes, 4)[0, 0, :4].tolist() == [0, 15, 9, 8]


def test_a_row_of_zeros_stays_zero() -> None:
    for layout in LAYOUTS:
        packed = quantize(np.zeros((2, 40), np.float32), layout)
        assert not dequantize(packed, layout, 40).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("loops", [_kernels_numpy, _kernels_numba])
def test_what_is_not_finite_is_refused(value: float, loops: object) -> None:
    weights = heavy_tailed(3, 64)
    weights[1, 5] = value
    with pytest.raises(ValueError, match="not finite"):
        quantize(weights, WeightFormat(4, 32), None, loops)  # type: ignore[arg-type]


def test_what_overflows_the_scales_is_refused() -> None:
    with pytest.raises(ValueError, match="too large for scales of 16 bits"):
        quantize(np.full((1, 32), 1e7, np.float32), WeightFormat(4, 32))


@pytest.mark.parametrize("layout", ["int4-g32", "int4-g32-asym", "int4-g128", "int2-g16-asym"])
def test_a_searched_scale_loses_less_where_it_counts(layout: str) -> None:
    found, weights, importance = WeightFormat.parse(layout), heavy_tailed(64, 512), None
    losses = []
    for importance in (None, importance_of(512)):
        off = dequantize(quantize(weights, found, importance), found, 512) - weights
        losses.append(float((off**2 * importance_of(512)).sum()))
    assert losses[1] < 0.93 * losses[0]


# ---- onnxruntime's own kernels


def run_node(node: onnx.NodeProto, given: dict[str, np.ndarray], inputs: list[str]) -> np.ndarray:
    """One node with everything but the inputs as initializers."""
    kept = [numpy_helper.from_array(v, n) for n, v in given.items() if n not in inputs]
    declared = [
        helper.make_tensor_value_info(
            n, helper.np_dtype_to_tensor_dtype(given[n].dtype), given[n].shape
        )
        for n in inputs
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "one", declared, [output], kept)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    (found,) = session.run(None, {n: given[n] for n in inputs})
    return np.asarray(found)


@pytest.mark.parametrize("inputs", [512, 200])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_onnxruntime_multiplies_with_these_weights(layout: WeightFormat, inputs: int) -> None:
    layout = WeightFormat(layout.bits, layout.block, layout.is_symmetric, scale_bits=32)
    weights = heavy_tailed(24, inputs)
    packed = quantize(weights, layout)
    given = {
        "x": np.random.default_rng(2).normal(size=(3, inputs)).astype(np.float32),
        "w": packed.codes,
        "s": packed.scales.reshape(-1),
    }
    if packed.zero_points is not None:
        given["z"] = packed.zero_points.reshape(-1)
    node = helper.make_node(
        "MatMulNBits",
        list(given),
        ["y"],
        domain="com.microsoft",
        **{"K": inputs, "N": 24, "bits": layout.bits, "block_size": layout.block},
    )
    expected = given["x"] @ dequantize(packed, layout, inputs).T
    found = run_node(node, given, ["x"])
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("layout", ["int4-g32", "int4-g32-asym", "int8-g64", "int8-g16-asym"])
def test_onnxruntime_looks_up_these_rows(layout: str) -> None:
    found = WeightFormat.parse(layout)
    found = WeightFormat(found.bits, found.block, found.is_symmetric, scale_bits=32)
    packed = quantize(heavy_tailed(24, 256), found)
    given = {
        "w": packed.codes.reshape(24, -1),
        "ids": np.array([[3, 0, 23]], np.int64),
        "s": packed.scales,
    }
    if packed.zero_points is not None:
        given["z"] = packed.zero_points
    node = helper.make_node(
        "GatherBlockQuantized",
        list(given),
        ["y"],
        domain="com.microsoft",
        **{"gather_axis": 0, "quantize_axis": 1, "block_size": found.block, "bits": found.bits},
    )
    expected = dequantize(packed, found, 256)[given["ids"]]
    np.testing.assert_allclose(run_node(node, given, ["ids"]), expected, rtol=1e-6)
