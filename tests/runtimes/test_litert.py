"""The census of LiteRT tells XNNPACK's integer kernels from float ones and from slow ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from ai_edge_quantizer import qtyping, quantizer
from conftest import Workshop

from edgebuild import catalog
from edgebuild.runtimes.litert import _arithmetic, _sites_of_layers
from edgebuild.vocabulary.artifact import Arithmetic
from edgebuild.vocabulary.errors import DeviceError
from edgebuild.vocabulary.precision import LayerKind, Precision

KERNELS = [
    ("Convolution (NHWC, QC8) IGEMM", True, Arithmetic.INTEGER),
    ("Convolution (NHWC, QD8, F32, QC8W) IGEMM", True, Arithmetic.INTEGER),
    ("Fully Connected (NC, QS8, QC8W) GEMM", True, Arithmetic.INTEGER),
    ("Fully Connected (NC, QDU8, F32, QC8W) GEMM", True, Arithmetic.INTEGER),
    ("Fully Connected (NC, QD8, F32, QC4W) GEMM", True, Arithmetic.INTEGER),
    ("Max Pooling (NHWC, S8)", True, Arithmetic.INTEGER),
    ("Add (ND, QS8)", True, Arithmetic.INTEGER),
    ("Convolution (NHWC, F32) IGEMM", True, Arithmetic.FLOAT),
    # Only stored as integers: they are widened before they are multiplied.
    ("Fully Connected (NC, F32, QC8W) GEMM", True, Arithmetic.FLOAT),
    ("Fully Connected (NC, F32, QC4W) GEMM", True, Arithmetic.FLOAT),
    ("Convert (NC, F32, QS8)", True, Arithmetic.CONVERSION),
    ("QUANTIZE", False, Arithmetic.CONVERSION),
    ("DEQUANTIZE", False, Arithmetic.CONVERSION),
    ("Add (ND)", True, Arithmetic.UNTYPED),
    ("DEPTHWISE_CONV_2D", False, Arithmetic.UNTYPED),
    ("GATHER", False, Arithmetic.UNTYPED),
]


@pytest.mark.parametrize(("kernel", "is_delegated", "expected"), KERNELS)
def test_a_kernel_is_classed_by_the_types_in_its_name(
    kernel: str, is_delegated: bool, expected: Arithmetic
) -> None:
    assert _arithmetic(kernel, is_delegated) is expected


def test_layers_take_their_sites_in_the_order_of_the_file() -> None:
    events = [
        ("Convert (NC, F32, QS8)", True, 0.0),
        ("Convolution (NHWC, QC8) IGEMM", True, 0.0),
        ("Add (ND)", True, 0.0),
        ("FULLY_CONNECTED", False, 0.0),
    ]
    weights = {
        "0 CONV_2D int8-static": "stem",
        "1 EMBEDDING_LOOKUP fp32": "words",
        "5 FULLY_CONNECTED fp32": "head",
    }
    assert _sites_of_layers(events, weights) == {1: ("stem",), 3: ("head",)}


def test_layers_that_ran_in_another_order_are_told_apart_by_their_arithmetic() -> None:
    events = [
        ("Convolution (NHWC, F32) IGEMM", True, 0.0),
        ("Convolution (NHWC, QC8) IGEMM", True, 0.0),
    ]
    weights = {"0 CONV_2D int8-static": "integer", "1 CONV_2D fp32": "float"}
    assert _sites_of_layers(events, weights) == {0: ("float",), 1: ("integer",)}


def test_layers_take_no_sites_where_the_runtime_ran_another_number_of_them() -> None:
    events = [("Convolution (NHWC, QC8) IGEMM", True, 0.0)]
    assert _sites_of_layers(events, {"0 CONV_2D fp32": "stem", "1 CONV_2D fp32": "body"}) == {}


def test_a_dynamic_depthwise_layer_is_seen_to_leave_the_delegate(
    workshop: Workshop, tmp_path: Path
) -> None:
    subject = workshop.subject("mobilenet-v2")
    plain = workshop.artifact("mobilenet-v2", "tflite", Precision.FP32)
    forced = dataclasses.replace(plain, path=tmp_path / "forced.tflite")
    worker = quantizer.Quantizer(str(plain.path))
    operation = qtyping.TFLOperationName.DEPTHWISE_CONV_2D
    worker.add_dynamic_config(".*", operation, num_bits=8)
    worker.quantize().export_model(str(forced.path))

    runs = list(catalog.runtime("litert").kernels(forced, subject.held_out))
    depthwise = {s.path for s in subject.program.sites if s.kind is LayerKind.DEPTHWISE}
    outside = {site for run in runs if run.kernel == "DEPTHWISE_CONV_2D" for site in run.sites}
    assert outside == depthwise
    assert not [run for run in runs if run.arithmetic is Arithmetic.INTEGER]


def test_a_file_that_is_no_model_is_a_device_error_in_one_line(
    workshop: Workshop, tmp_path: Path
) -> None:
    plain = workshop.artifact("two-inputs", "tflite", Precision.FP32)
    broken = dataclasses.replace(plain, path=tmp_path / "broken.tflite")
    broken.path.write_bytes(b"no model")
    with pytest.raises(DeviceError, match=r"^LiteRT cannot profile broken\.tflite: .+$"):
        list(catalog.runtime("litert").kernels(broken, workshop.subject("two-inputs").held_out))
