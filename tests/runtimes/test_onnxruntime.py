"""The census of onnxruntime tells integer kernels from float ones, whatever was asked for."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path

import pytest
import small_build
from conftest import Workshop, uniform

from edgebuild import catalog, runner
from edgebuild.runtimes._onnxruntime_work import arithmetic
from edgebuild.runtimes.onnxruntime import _sites
from edgebuild.vocabulary.artifact import Arithmetic
from edgebuild.vocabulary.calibration import ProfileEffort
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.target import Activations
from edgebuild.vocabulary.units import Seconds

MOMENT = Seconds(60.0)

KERNELS = [
    ("QLinearConv", True, Arithmetic.INTEGER),
    ("QGemm", True, Arithmetic.INTEGER),
    ("MatMulNBits", False, Arithmetic.INTEGER),
    ("DynamicQuantizeMatMul", False, Arithmetic.INTEGER),
    ("MatMulIntegerToFloat", True, Arithmetic.INTEGER),
    ("MaxPool", True, Arithmetic.INTEGER),
    ("Reshape", True, Arithmetic.INTEGER),
    ("QuantizeLinear", False, Arithmetic.CONVERSION),
    ("DequantizeLinear", True, Arithmetic.CONVERSION),
    ("DynamicQuantizeLinear", False, Arithmetic.CONVERSION),
    ("Conv", False, Arithmetic.FLOAT),
    ("FusedConv", False, Arithmetic.FLOAT),
    ("Gemm", False, Arithmetic.FLOAT),
    ("LayerNormalization", False, Arithmetic.FLOAT),
]


@pytest.mark.parametrize(("kernel", "reads_integers", "expected"), KERNELS)
def test_a_kernel_is_classed_by_its_name_and_its_first_input(
    kernel: str, reads_integers: bool, expected: Arithmetic
) -> None:
    event = {"kernel": kernel, "inputs": [["uint8" if reads_integers else "float", [1]]]}
    assert arithmetic(event) is expected


def test_a_weight_is_found_under_the_name_that_the_runtime_gave_it() -> None:
    weights = {"conv.weight": "conv", "conv.weight_1": "other"}
    assert list(_sites(["x", "conv.weight_quantized", "conv.weight_scale"], weights)) == ["conv"]
    assert list(_sites(["conv.weight_1_nchwc"], weights)) == ["other"]
    assert list(_sites(["x", "conv"], weights)) == []


@pytest.mark.skipif(platform.machine() != "x86_64", reason="ARM fuses signed layers by itself")
@pytest.mark.parametrize("name", ["residual-cnn", "mobilenet-v2"])
def test_signed_layers_without_the_session_setting_are_seen_to_run_in_float(
    workshop: Workshop, name: str, tmp_path: Path
) -> None:
    recipe = uniform(workshop.subject(name).program, "onnx", Precision.INT8_STATIC)
    artifact = workshop.export(name, recipe, tmp_path, Activations.INT8)
    held_out = workshop.subject(name).held_out
    runtime = catalog.runtime("onnxruntime")

    as_told = list(runtime.kernels(artifact, held_out))
    assert not [run.sites for run in as_told if run.arithmetic is Arithmetic.FLOAT and run.sites]

    settings = {key: v for key, v in artifact.settings.items() if "int8allowed" not in key}
    assert len(settings) < len(artifact.settings)
    untold = dataclasses.replace(artifact, settings=settings)
    fallen = [
        run
        for run in runtime.kernels(untold, held_out)
        if run.sites and run.arithmetic is Arithmetic.FLOAT
    ]
    assert fallen
    assert all("Conv" in run.kernel or "Gemm" in run.kernel for run in fallen)


@pytest.mark.parametrize("name", ["mobilenet-v2", "ssdlite", "residual-cnn"])
def test_float_convolutions_are_found_though_their_weights_lose_their_names(
    workshop: Workshop, name: str
) -> None:
    artifact = workshop.artifact(name, "onnx", Precision.FP32)
    runs = workshop.kernels_of(name, artifact)
    floating = {s for run in runs if run.arithmetic is Arithmetic.FLOAT for s in run.sites}
    assert floating == {site.path for site in workshop.subject(name).program.sites}


def test_the_census_times_every_kernel(workshop: Workshop) -> None:
    artifact = workshop.artifact("residual-cnn", "onnx", Precision.FP32)
    runs = workshop.kernels_of("residual-cnn", artifact)
    assert all(run.seconds >= 0 for run in runs)
    assert sum(run.seconds for run in runs) > 0


def test_profiles_are_taken_with_the_settings_that_the_runner_has_there(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = workshop.artifact("residual-cnn", "onnx", Precision.FP32)
    held_out = workshop.subject("residual-cnn").held_out
    runtime, effort = catalog.runtime("onnxruntime"), ProfileEffort(2, 1)
    with catalog.device("local") as device:
        asked = (artifact, held_out, device, 1, effort)
        done = device.run(["python", *runtime.profiling(*asked)], MOMENT)
        assert list(runtime.timings(artifact, done.stdout))
        other = tmp_path / "runner.py"
        other.write_text("def session_settings(settings):\n    raise SystemExit('was asked')\n")
        monkeypatch.setattr(runner, "__file__", str(other))
        refused = device.run(["python", *runtime.profiling(*asked)], MOMENT)
        assert refused.reason == "was asked"
    monkeypatch.setattr(runner, "session_settings", small_build.failing(LookupError("was asked")))
    with pytest.raises(LookupError, match="was asked"):
        list(runtime.kernels(artifact, held_out))
