"""A target that was probed is predicted by its kernels, with an interval and where it is from."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from edgebuild.capture import capture
from edgebuild.inputs.target_file import load_target
from edgebuild.search.costs import glue_of
from edgebuild.search.estimate import (
    doubts,
    load_of,
    predict_latency,
    predict_layer,
    retimed,
    work_of,
)
from edgebuild.search.layers import layer_shapes
from edgebuild.vocabulary.artifact import Arithmetic, KernelRun, KernelWork
from edgebuild.vocabulary.calibration import (
    Calibration,
    KernelSample,
    Load,
    NetworkSample,
    ProbedRuntime,
)
from edgebuild.vocabulary.measurement import Evidence
from edgebuild.vocabulary.offer import Choice, LayerShape
from edgebuild.vocabulary.precision import LayerKind, Precision
from edgebuild.vocabulary.recipe import Recipe
from edgebuild.vocabulary.target import RuntimeFacts, Target
from edgebuild.vocabulary.units import Bytes, Seconds

START, MAC, BYTE = 2e-6, 1e-10, 1e-9
PI = load_target("robot-raspberry-pi-5")


def taken(work: KernelWork) -> Seconds:
    return Seconds(START + MAC * work.macs + BYTE * (work.weights + work.read + work.written))


def calibrated(slow: float = 1.0) -> Target:
    """A board on which every kernel keeps to one law; pools of integers are so much slower."""
    draw, networks = random.Random(0), []
    for number in range(8):
        works = []
        for _ in range(4):
            shape = LayerShape(
                LayerKind.LINEAR, draw.randrange(8, 256), draw.randrange(8, 256), (16,)
            )
            works += [work_of(shape, p) for p in (Precision.FP32, Precision.INT8_STATIC)]
            works += [pool(draw.randrange(10**3, 10**5), size) for size in (1, 4)]
        slower = {"MaxPool int8-static": slow}
        times = [Seconds(taken(work) * slower.get(work.kind, 1.0)) for work in works]
        kernels = tuple(
            KernelSample(w.form, w, time, time) for w, time in zip(works, times, strict=True)
        )
        networks.append(NetworkSample(str(number), kernels, Load(2, Bytes(0)), Seconds(sum(times))))
    probed = ProbedRuntime("onnxruntime", "onnxruntime 1.32.0", 4, tuple(networks))
    return replace(PI, calibration=Calibration("ssh://pi@shelf", "2026-11-24", (probed,)))


def pool(numbers: int, size: int) -> KernelWork:
    numerics = Precision.FP32 if size == 4 else Precision.INT8_STATIC
    sizes = Bytes(size * numbers), Bytes(size * numbers // 4)
    return KernelWork("MaxPool", numerics, 0, Bytes(0), *sizes, 8, 8)


def run(work: KernelWork, *sites: str) -> KernelRun:
    return KernelRun(work.form, sites, Arithmetic.FLOAT, Seconds(1.0), work)


PROGRAM = capture(nn.Sequential(nn.Linear(32, 64), nn.ReLU()).eval(), (torch.randn(1, 16, 32),))
RECIPE = Recipe("fp32", "onnx", tuple((s, Choice("quantize", "fp32")) for s in PROGRAM.sites))
LAYER = work_of(layer_shapes(PROGRAM)["0"], Precision.FP32)


def onnxruntime(target: Target) -> RuntimeFacts:
    return next(runtime for runtime in target.runtimes if runtime.name == "onnxruntime")


def test_a_layers_work_is_that_of_its_kernel() -> None:
    assert LAYER.kind == "linear fp32"
    assert (LAYER.macs, LAYER.weights) == (16 * 32 * 64, 4 * 32 * 64)
    assert (LAYER.read, LAYER.written) == (4 * 16 * 32, 4 * 16 * 64)
    convolution = LayerShape(LayerKind.CONVOLUTION, 8, 16, (10, 10), (3, 3), (2, 2), (1, 1), (1, 1))
    small = work_of(convolution, Precision.INT4_WEIGHTS)
    assert small.kind == "convolution int8-static"
    assert (small.macs, small.read, small.written) == (25 * 9 * 8 * 16, 800, 400)


def test_a_calibrated_prediction_has_its_interval_and_names_the_probe() -> None:
    target = calibrated()
    found = predict_latency(PROGRAM, RECIPE, target, onnxruntime(target), [run(LAYER, "0")])
    assert found.evidence is Evidence.PREDICTED
    assert found.value == pytest.approx(taken(LAYER), rel=0.1)
    low, high = found.interval
    assert low < taken(LAYER) < high < 2 * low
    assert found.note.startswith("from a probe of ssh://pi@shelf, 2026-11-24")


def test_a_runtime_that_nobody_probed_keeps_to_the_roofline() -> None:
    target = calibrated()
    litert = next(runtime for runtime in target.runtimes if runtime.name == "litert")
    found = predict_latency(PROGRAM, RECIPE, target, litert, [run(LAYER, "0")])
    assert "roofline" in found.note


def test_a_layer_is_predicted_by_the_probe() -> None:
    target = calibrated()
    shape = layer_shapes(PROGRAM)["0"]
    seconds = predict_layer(shape, Precision.FP32, target, onnxruntime(target))
    assert seconds == pytest.approx(taken(LAYER), rel=0.1)


def test_what_was_never_probed_is_said_in_the_note_and_once() -> None:
    target = calibrated()
    strange = replace(LAYER, form="Einsum")
    runs = [run(LAYER, "0"), run(strange)]
    found = predict_latency(PROGRAM, RECIPE, target, onnxruntime(target), runs)
    assert found.note.endswith("never probed: Einsum fp32")
    expected = f"onnxruntime: never probed on {PI.name}: Einsum fp32"
    assert doubts(target, onnxruntime(target), runs) == [expected]
    assert doubts(PI, onnxruntime(PI), runs) == []


def test_a_slow_kernel_is_told_by_its_name() -> None:
    target = calibrated(slow=40)
    (told,) = doubts(target, onnxruntime(target), [run(LAYER, "0"), run(pool(40_000, 1))])
    assert told.startswith(f"onnxruntime: slow on {PI.name}: MaxPool int8-static (")


def test_a_layout_that_the_device_does_without_takes_no_time_there() -> None:
    target = calibrated()
    runs = [run(replace(LAYER, form="ReorderInput")), run(LAYER, "0")]
    (kept,) = retimed(runs, target, onnxruntime(target))
    assert kept.sites == ("0",)
    assert doubts(target, onnxruntime(target), runs) == []


def test_what_lies_between_layers_takes_its_time_on_the_target() -> None:
    target = calibrated()
    between = pool(40_000, 4)
    runs = retimed([run(LAYER, "0"), run(between)], target, onnxruntime(target))
    assert glue_of(runs, PROGRAM)["0"] == pytest.approx(taken(between), rel=0.1)


def test_a_call_carries_inputs_and_outputs() -> None:
    assert load_of(PROGRAM) == Load(2, Bytes(4 * 16 * (32 + 64)))
