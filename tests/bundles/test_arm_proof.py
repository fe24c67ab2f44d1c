"""Artifacts compute on ARM64 code what they compute here: the same bits, or how far from them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import small_build
from arm import bundle_of, needs_arm64
from conftest import ARM64_PARTS, Workshop

from edgebuild import build, catalog, runner
from edgebuild.bundles.arm_proof import CPUS, prove_on_arm
from edgebuild.bundles.bench import Effort, bench
from edgebuild.bundles.manifest import ArmRecord, Bundle, load_bundle
from edgebuild.bundles.verify import verify
from edgebuild.devices.local import Local
from edgebuild.search import measure, prove
from edgebuild.vocabulary.contracts import Completed
from edgebuild.vocabulary.errors import DeviceError, InputError, InvalidBundle
from edgebuild.vocabulary.measurement import Evidence
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.units import Seconds

FORMATS = ("onnx", "tflite")
# Integers from the first layer to the last: there is no order of summation that could round.
EXACT = [
    ("onnx", Precision.INT8_STATIC),
    ("tflite", Precision.INT8_STATIC),
    ("tflite", Precision.INT16_ACTIVATIONS),
]
A_FEW_ROUNDINGS = 1e-6
# Kernels that round what they are given in other places than those for x86 do.
LIMITS = {("onnx", Precision.INT4_WEIGHTS): 0.05, ("onnx", Precision.INT16_ACTIVATIONS): 1e-3}
OTHERS = [
    (format_, precision, LIMITS.get((format_, precision), A_FEW_ROUNDINGS), cpu)
    for format_ in FORMATS
    for precision in Precision
    if (format_, precision) not in EXACT
    # What is only stored in few bits computes as fp32 does, whose kernels both processors run.
    for cpu in (CPUS[:1] if precision.is_storage_only else CPUS)
]
Make = Callable[[str, Precision], Bundle]


@pytest.fixture
def make(workshop: Workshop, built: Bundle, tmp_path: Path) -> Make:
    return lambda format_, precision: bundle_of(
        workshop, built, format_, precision, tmp_path / "bundle"
    )


def proven(bundle: Bundle, cpu: str) -> ArmRecord:
    with catalog.device(f"emulated://{cpu}") as device:
        return prove_on_arm(bundle, device)


@needs_arm64
@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize(("format_", "precision"), EXACT)
def test_integers_are_the_same_bits_on_every_processor(
    make: Make, format_: str, precision: Precision, cpu: str
) -> None:
    found = proven(make(format_, precision), cpu)
    assert found.is_bit_equal
    assert found.values == 64
    assert found.relative_error == 0.0
    assert found.where == f"{cpu}, emulated by QEMU 7.2"
    assert found.evidence is Evidence.EMULATED


# Of the zoo's other networks, those that are unlike each other; the U-Net resizes in float between
# its integer layers, and a rounding there moves an output by two steps at most.
@needs_arm64
@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "limits"),
    [
        ("mobilenet-v2", {"onnx": 0.0, "tflite": 0.0}),
        ("vit", {"onnx": 0.0, "tflite": 0.0}),
        ("u-net", {"onnx": 0.02, "tflite": 0.0}),
    ],
)
@pytest.mark.parametrize("format_", FORMATS)
def test_so_are_those_of_larger_networks_unless_float_stands_between(
    workshop: Workshop,
    built: Bundle,
    network: str,
    limits: Mapping[str, float],
    format_: str,
    tmp_path: Path,
) -> None:
    precision = Precision.INT8_STATIC
    bundle = bundle_of(workshop, built, format_, precision, tmp_path / "bundle", network)
    assert proven(bundle, "cortex-a76").relative_error <= limits[format_]


@needs_arm64
@pytest.mark.slow
@pytest.mark.parametrize(("format_", "precision", "limit", "cpu"), OTHERS)
def test_what_rounds_differs_by_no_more_than_it_should(
    make: Make, format_: str, precision: Precision, limit: float, cpu: str
) -> None:
    found = proven(make(format_, precision), cpu)
    assert found.relative_error <= limit
    assert found.is_bit_equal == (found.relative_error == 0.0)


@needs_arm64
@pytest.mark.parametrize(("cpu", "has_them"), [("cortex-a53", False), ("cortex-a76", True)])
def test_the_features_that_decide_the_kernels_are_told(
    make: Make, cpu: str, has_them: bool
) -> None:
    found = proven(make("tflite", Precision.INT8_STATIC), cpu)
    assert ("asimddp" in found.features) is has_them
    assert found.kernels == "XNNPACK"
    assert found.runtime.startswith("ai-edge-litert 2.")


@needs_arm64
def test_outputs_beyond_the_bundles_limit_are_found(make: Make) -> None:
    bundle = make("onnx", Precision.FP32)
    golden = bundle.path / "golden" / "output-0.npy"
    np.save(golden, np.load(golden) * 2)
    with pytest.raises(InvalidBundle, match=r"differ by 0\.5 on cortex-a53, emulated"):
        proven(bundle, "cortex-a53")


@needs_arm64
@pytest.mark.slow
def test_a_build_proves_it_where_that_is_asked_for(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(measure, "SEARCHING", replace(measure.SEARCHING, seconds=0.0))
    monkeypatch.setattr(prove, "PROVING", replace(prove.PROVING, seconds=0.0))
    bundle = build(
        small_build.workload(),
        small_build.TARGET,
        out=tmp_path / "small",
        formats=("onnx",),
        precisions=(Precision.INT8_STATIC,),
        minutes=0.0,
        emulate=True,
    )
    assert [proof.is_bit_equal for proof in bundle.manifest.arm] == [True, True]
    again = load_bundle(bundle.path)
    assert again.manifest.arm == bundle.manifest.arm
    assert [found.where.partition(",")[0] for found in again.manifest.arm] == list(CPUS)
    for report in ("report.md", "report.html"):
        said = (bundle.path / report).read_text()
        assert said.count("all 16 output values are bit-equal to the build machine") == len(CPUS)
    with catalog.device("local") as device:
        assert verify(again, device)


@needs_arm64
def test_verifying_on_an_emulated_processor_says_what_it_found(make: Make) -> None:
    bundle = make("tflite", Precision.FP32)
    done = edgebuild("verify", bundle.path, "--device", "emulated://cortex-a53")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert "without integer dot products, XNNPACK of ai-edge-litert" in said
    assert re.search(r"\d+ of 64 output values differ .* by [1-9]e-07 of the largest", said)
    done = edgebuild("verify", bundle.path, "--device", "emulated://cortex-a76", "--json")
    found = json.loads(done.stdout)["arm"]
    assert found["evidence"] == "emulated"
    assert found["differing"] > 0


def edgebuild(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The program, with the user's own cache."""
    assert ARM64_PARTS is not None
    return subprocess.run(
        [Path(sys.executable).with_name("edgebuild"), *map(str, arguments)],
        env={**os.environ, "EDGEBUILD_CACHE": str(ARM64_PARTS.folder.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )


def test_its_time_is_never_measured(built: Bundle) -> None:
    with pytest.raises(InputError, match="emulated cortex-a76 takes means nothing"):
        bench(built, "arm", catalog.device("emulated://cortex-a76"), Effort(1.0, 1))


# ---- devices that are not what they should be


@dataclass
class Pretender(Local):
    """This machine, with another answer to which processor it is, and silent runtimes."""

    machine: str = "aarch64"

    def __post_init__(self) -> None:
        super().__init__()
        self.name = "a board"

    def run(self, command: Sequence[str], deadline: Seconds) -> Completed:
        if command[1] == "-c":
            return Completed(0, json.dumps([self.machine, ["fp", "asimd"]]), "")
        return replace(super().run(command, deadline), stderr="")


def test_another_processor_is_refused(make: Make) -> None:
    with pytest.raises(DeviceError, match="a board is no ARM64 processor, but riscv64"):
        prove_on_arm(make("onnx", Precision.FP32), Pretender("riscv64"))


def test_a_runtime_that_lost_its_fast_kernels_is_no_proof(make: Make) -> None:
    with pytest.raises(DeviceError, match="LiteRT ran without XNNPACK's kernels on a board"):
        prove_on_arm(make("tflite", Precision.FP32), Pretender())


def test_a_single_bit_is_seen(make: Make) -> None:
    bundle = make("onnx", Precision.FP32)
    golden = bundle.path / "golden" / "output-0.npy"
    changed = np.array(runner.arrays(str(golden.parent), "output")[0])
    changed.view(np.uint32)[3, 0] ^= 1
    np.save(golden, changed)
    found = prove_on_arm(bundle, Pretender())
    assert (found.differing, found.values) == (1, 64)
    assert 0 < found.relative_error < A_FEW_ROUNDINGS


def test_a_model_that_does_not_run_is_told_with_the_reason(make: Make) -> None:
    bundle = make("onnx", Precision.FP32)
    (bundle.path / bundle.manifest.artifact.file).write_bytes(b"no model")
    with pytest.raises(DeviceError, match="does not run on a board"):
        prove_on_arm(bundle, Pretender())
