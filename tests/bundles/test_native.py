"""The runner without Python checks and measures as run.py does, here and on ARM64."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arm import bundle_of, needs_arm64
from conftest import Workshop
from pydantic import TypeAdapter
from typer.testing import CliRunner

from edgebuild import catalog, runner
from edgebuild.bundles import native
from edgebuild.bundles.manifest import Bundle, dump_manifest
from edgebuild.bundles.native import (
    bench_native,
    compile_runner,
    pack_native,
    verify_native,
)
from edgebuild.cli import app
from edgebuild.vocabulary.contracts import Completed
from edgebuild.vocabulary.errors import DeviceError, InputError, InvalidBundle, InvalidDestination
from edgebuild.vocabulary.measurement import Measurement
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.units import Seconds

HERE = platform.machine()
SOON = Seconds(300.0)
CASES = [(format_, precision) for format_ in ("onnx", "tflite") for precision in Precision]
# On another processor; here the outputs are the very same.
LIMITS = {Precision.FP32: 1e-6, Precision.INT8_STATIC: 0.0}


def has_compiler(machine: str) -> bool:
    try:
        native._compiler(machine)
    except InputError:
        return False
    return True


needs_compiler = pytest.mark.skipif(
    not has_compiler(HERE), reason="no C compiler is installed: apt install gcc"
)
needs_cross_compiler = pytest.mark.skipif(
    not has_compiler("aarch64"),
    reason="no compiler for ARM64: pip install 'edgebuild[native]', "
    "or apt install gcc-aarch64-linux-gnu",
)
Make = Callable[[str, Precision, str], Path]


@pytest.fixture
def packed(workshop: Workshop, built: Bundle, tmp_path: Path) -> Make:
    """A folder as it goes to a device."""

    def make(format_: str, precision: Precision, machine: str) -> Path:
        bundle = bundle_of(workshop, built, format_, precision, tmp_path / "bundle")
        return pack_native(bundle, tmp_path / "native", machine)

    return make


@pytest.fixture
def folder(packed: Make) -> Path:
    return packed("onnx", Precision.FP32, HERE)


def run(folder: Path, *arguments: str) -> Completed:
    """Runs it with nothing of this process around it."""
    command = [folder / "runner", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={})
    return Completed(done.returncode, done.stdout, done.stderr)


def answer(done: Completed) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


@needs_compiler
@pytest.mark.parametrize(("format_", "precision"), CASES)
def test_golden_outputs_are_the_same_bits_as_from_python(
    packed: Make, format_: str, precision: Precision
) -> None:
    found = answer(run(packed(format_, precision, HERE), "check"))
    assert found["relative_error"] == 0.0
    assert found["ok"] is True
    assert found["limit"] == 0.15
    assert found["runtime"] == native_runtime(format_)


def native_runtime(format_: str) -> str:
    return str(runner.runtime_version(format_))


@needs_compiler
@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_what_it_measures_reads_like_what_run_py_measures(packed: Make, format_: str) -> None:
    folder = packed(format_, Precision.INT8_STATIC, HERE)
    raw = TypeAdapter(Measurement).validate_python(answer(run(folder, "bench", "0", "40", "raw")))
    assert len(raw.latencies) == 40
    assert min(raw.latencies) > 0
    assert raw.load > 0
    assert raw.peak_memory > 0
    assert raw.machine == runner.machine()
    summary = answer(run(folder, "bench", "0.1", "20"))
    shares = summary["latencies"]
    assert 0 < shares["p50"] <= shares["p90"] <= shares["p99"]
    assert shares["runs"] >= 20
    assert summary["threads"] == 1


@needs_arm64
@needs_cross_compiler
@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a76"])
@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_it_runs_on_arm64(packed: Make, format_: str, precision: Precision, cpu: str) -> None:
    folder = packed(format_, precision, "aarch64")
    with catalog.device(f"emulated://{cpu}") as device:
        done = device.run([f"{device.push(folder)}/runner", "check"], SOON)
        found = answer(done)
        assert found["relative_error"] <= LIMITS[precision]
        assert found["runtime"] == native_runtime(format_)
        assert format_ == "onnx" or "XNNPACK delegate for CPU" in done.stderr
        # That it counts; how long it takes there means nothing.
        bench = answer(device.run([f"{folder}/runner", "bench", "0", "10"], SOON))
        assert bench["latencies"]["runs"] == 10


@needs_compiler
def test_outputs_that_differ_exit_with_one(folder: Path) -> None:
    golden = folder / "golden" / "output-0.npy"
    np.save(golden, np.load(golden) * 2)
    done = run(folder)
    assert done.returncode == 1
    assert json.loads(done.stdout)["ok"] is False
    assert json.loads(done.stdout)["relative_error"] == pytest.approx(0.5)


@needs_compiler
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_golden_output_that_is_no_number_never_passes(folder: Path, wrong: float) -> None:
    golden = folder / "golden" / "output-0.npy"
    array = np.load(golden)
    array[3, 0] = wrong
    np.save(golden, array)
    assert run(folder).returncode == 1


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def too_large(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"(8, 3, 32, 32)", b"(8, 3, 9999999, 9999999)"))


@needs_compiler
@pytest.mark.parametrize(
    ("spoil", "code", "told"),
    [
        (lambda to: (to / "spec.txt").unlink(), 2, "cannot read "),
        (lambda to: (to / "spec.txt").write_text("format onnx\n"), 2, "lacks one of format"),
        (lambda to: (to / "spec.txt").open("a").write("secret of ours\n"), 2, "does not know"),
        (lambda to: (to / "golden/input-0.npy").write_bytes(b"?"), 2, "input-0.npy is no .npy"),
        (lambda to: cut(to / "golden/input-0.npy"), 2, "input-0.npy is cut off"),
        (lambda to: too_large(to / "golden/input-0.npy"), 2, "is larger than any sample"),
        (lambda to: (to / "golden/input-1.npy").unlink(), 2, "the model takes 2 inputs, not 1"),
        (lambda to: (to / "golden/output-0.npy").unlink(), 2, "holds no output-0.npy"),
        (lambda to: shutil.copy(to / "golden/input-1.npy", to / "golden/input-0.npy"), 2,
         "input 0 of the model has 3072 values, not 8"),
        (lambda to: (to / "model.onnx").unlink(), 4, "there is no model file "),
        (lambda to: (to / "model.onnx").write_bytes(b"?"), 4, "onnxruntime: "),
        (lambda to: next(to.glob("lib*")).unlink(), 4, "the runtime is missing: "),
        (lambda to: next(to.glob("lib*")).write_bytes(b"?"), 4, "the runtime is missing: "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_in_one_line(
    folder: Path, spoil: Callable[[Path], object], code: int, told: str
) -> None:
    spoil(folder)
    done = run(folder)
    assert done.returncode == code, done
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert told in line


@needs_compiler
def test_an_unknown_command_is_told_with_those_that_there_are(folder: Path) -> None:
    done = run(folder, "predict")
    assert done.returncode == 2
    assert done.stderr == "predict is no command: check, bench [SECONDS [COUNT [raw]]]\n"


@needs_compiler
def test_the_program_is_small_and_needs_the_c_library_alone(tmp_path: Path) -> None:
    compile_runner(tmp_path / "runner", HERE)
    assert (tmp_path / "runner").stat().st_size < 200_000
    needed = subprocess.run(["ldd", tmp_path / "runner"], capture_output=True, text=True).stdout
    assert "libc.so" in needed
    assert "libstdc++" not in needed


@needs_compiler
def test_no_compiler_finds_anything_to_warn_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = ("-Wall", "-Wextra", "-Werror")
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, *strict))
    compile_runner(tmp_path / "runner", HERE)


# ---- on a device


@needs_compiler
def test_a_device_checks_and_measures_a_folder_that_is_copied_there(folder: Path) -> None:
    with catalog.device("local") as device:
        assert verify_native(folder, device).relative_error == 0.0
        assert len(bench_native(folder, device, 0.0, 30).latencies) == 30


@needs_compiler
def test_a_device_that_computes_something_else_is_told_by_how_much(folder: Path) -> None:
    golden = folder / "golden" / "output-0.npy"
    np.save(golden, np.load(golden) * 2)
    with pytest.raises(InvalidBundle, match=r"differ by 0\.5 on host \(onnxruntime 1"):
        verify_native(folder, catalog.device("local"))


@needs_compiler
def test_a_device_that_lacks_the_runtime_is_told_so(folder: Path) -> None:
    next(folder.glob("lib*")).unlink()
    with pytest.raises(DeviceError, match="the runner failed on host: the runtime is missing: "):
        bench_native(folder, catalog.device("local"), 0.0, 1)


def test_its_time_on_an_emulated_device_is_never_measured(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="takes means nothing"):
        bench_native(tmp_path, catalog.device("emulated:"), 0.0, 1)


# ---- the folder is not written


@pytest.fixture
def bundle(workshop: Workshop, built: Bundle, tmp_path: Path) -> Bundle:
    return bundle_of(workshop, built, "onnx", Precision.FP32, tmp_path / "bundle")


def test_a_folder_that_is_there_is_left_alone(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(InvalidDestination, match="taken exists: give a new folder"):
        pack_native(bundle, tmp_path / "taken", HERE)
    with pytest.raises(InvalidDestination, match="/proc cannot be written to"):
        pack_native(bundle, Path("/proc/native"), HERE)


def test_a_processor_that_no_runner_is_made_for_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no runner is made for 'armv7l', but for aarch64 and x86"):
        pack_native(bundle, tmp_path / "native", "armv7l")


def test_without_a_compiler_it_is_told_what_to_install(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(native.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="no compiler for .* apt install gcc"):
        pack_native(bundle, tmp_path / "native", HERE)
    assert not (tmp_path / "native").exists()


def test_a_name_that_would_be_a_second_fact_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    artifact = replace(bundle.manifest.artifact, inputs=("image\nlibrary ../evil.so", "sensors"))
    spoiled = Bundle(bundle.path, replace(bundle.manifest, artifact=artifact))
    with pytest.raises(InvalidBundle, match="is no name in one line"):
        pack_native(spoiled, tmp_path / "native", HERE)


@needs_compiler
def test_the_command_writes_a_folder_that_runs(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "board"
    words = ["native", bundle.path, "-o", out, "--machine", HERE, "--json"]
    program = Path(sys.executable).with_name("edgebuild")
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"folder": str(out), "machine": HERE}
    assert answer(run(out))["ok"] is True
    assert "libonnxruntime.so" in (out / "NOTICE").read_text()


@pytest.mark.parametrize(
    ("isa", "asked", "machine"),
    [
        ("x86-64+avx2", [], "x86_64"),
        ("armv8.2-a", [], "aarch64"),
        ("armv8.2-a", ["--machine", "x86_64"], "x86_64"),
        ("riscv64", [], "aarch64"),
    ],
)
def test_the_command_makes_it_for_the_bundles_own_target(
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    isa: str,
    asked: list[str],
    machine: str,
) -> None:
    target = bundle.manifest.target
    target = replace(target, compute=replace(target.compute, isa=isa))
    manifest = replace(bundle.manifest, target=target)
    (bundle.path / "manifest.json").write_bytes(dump_manifest(manifest))
    made: list[str] = []

    def pack(found: Bundle, folder: Path, machine: str, progress: object) -> Path:
        made.append(machine)
        return folder

    monkeypatch.setattr(native, "pack_native", pack)
    words = ["native", str(bundle.path), "-o", str(tmp_path / "out"), *asked]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert made == [machine]
