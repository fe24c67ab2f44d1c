"""run.py works where there is nothing but numpy and a runtime, and says what is wrong in a line."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Workshop, write_manifest

from edgebuild import runner
from edgebuild.vocabulary.precision import Precision

ENVIRONMENTS = {
    "onnxruntime": ["numpy", "onnxruntime"],
    "ai-edge-litert": ["numpy", "ai-edge-litert==2.3.0"],
    # Built for numpy 1.
    "tflite-runtime": ["numpy<2", "tflite-runtime==2.14.0"],
    "nothing": ["numpy"],
}
NAME = "two-inputs"
ALL = tuple(Precision)
OLD = (Precision.FP32, Precision.FP16, Precision.INT8_STATIC)
CASES = [
    *(("onnxruntime", "onnx", precision) for precision in ALL),
    *(("ai-edge-litert", "tflite", precision) for precision in ALL),
    *(("tflite-runtime", "tflite", precision) for precision in OLD),
]
# tflite-runtime rounds between integer layers in other places: by up to a few steps in 256.
LIMITS = {"tflite-runtime": {Precision.INT8_STATIC: 0.05}}
LIMIT = 1e-4


@dataclass(frozen=True)
class Bundle:
    """A folder as it travels: run.py, its manifest, a model and golden samples."""

    folder: Path

    @property
    def manifest(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "manifest.json").read_text())
        return content

    @property
    def model(self) -> Path:
        return self.folder / str(self.manifest["artifact"]["file"])

    def golden(self, kind: str) -> list[np.ndarray]:
        return [np.array(array) for array in runner.arrays(str(self.folder / "golden"), kind)]

    def run(self, python: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Runs run.py outside of this project, with nothing of this process around it."""
        clean = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        return subprocess.run(
            [str(python), str(self.folder / "run.py"), *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env=clean,
        )


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The Python of a virtual environment with one runtime, made once a process."""
    made: dict[str, Path] = {}
    folder = tmp_path_factory.mktemp("environments")

    def python_of(name: str) -> Path:
        if name not in made:
            made[name] = _make_environment(folder / name, ENVIRONMENTS[name])
        return made[name]

    return python_of


def _make_environment(folder: Path, packages: list[str]) -> Path:
    venv = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    subprocess.run(venv, check=True, capture_output=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    install = [*pip, "install", "--quiet", "--only-binary", ":all:"]
    done = subprocess.run([*install, *packages], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        pytest.skip(f"pip cannot install {' '.join(packages)}: {reason}")
    return python


def make_bundle(workshop: Workshop, format_: str, precision: Precision, folder: Path) -> Bundle:
    subject = workshop.subject(NAME)
    artifact = workshop.artifact(NAME, format_, precision)
    shutil.copy(artifact.path, folder)
    shutil.copy(runner.__file__, folder / "run.py")
    golden = folder / "golden"
    golden.mkdir()
    for index, array in enumerate(subject.held_out.inputs()):
        np.save(golden / f"input-{index}.npy", array)
    runner.save(str(golden), workshop.outputs_of(NAME, artifact))
    record = {"folder": "golden", "limit": LIMIT}
    write_manifest(artifact, folder / "manifest.json", file=artifact.path.name, golden=record)
    return Bundle(folder)


def edit_manifest(bundle: Bundle, **artifact: object) -> None:
    manifest = bundle.manifest
    manifest["artifact"].update(artifact)
    (bundle.folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def bundle(workshop: Workshop, tmp_path: Path) -> Bundle:
    return make_bundle(workshop, "onnx", Precision.FP32, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "format_", "precision"), CASES)
def test_every_command_works_beside_a_bare_runtime(
    workshop: Workshop,
    environment: Callable[[str], Path],
    runtime: str,
    format_: str,
    precision: Precision,
    tmp_path: Path,
) -> None:
    python = environment(runtime)
    bundle = make_bundle(workshop, format_, precision, tmp_path)
    limit = LIMITS.get(runtime, {}).get(precision, LIMIT)
    edit_manifest(bundle, golden={"folder": "golden", "limit": limit})

    checked = answer(bundle.run(python))
    assert checked == answer(bundle.run(python, "check"))
    assert checked["ok"] is True
    assert checked["relative_error"] <= limit
    assert re.fullmatch(rf"{runtime} \d+\.\d+\.\d+", checked["runtime"])

    answer(bundle.run(python, "outputs", "golden", "replayed"))
    replayed = runner.arrays(str(tmp_path / "replayed"), "output")
    for wanted, got in zip(bundle.golden("output"), replayed, strict=True):
        assert runner.relative_error(wanted, got) <= limit

    alone = tmp_path / "alone"
    alone.mkdir()
    names = [alone / f"mine-{index}.npy" for index in range(2)]
    for name, array in zip(names, bundle.golden("input"), strict=True):
        np.save(name, array[:1])
    shown = answer(bundle.run(python, "predict", *names, "--out", alone))
    assert len(shown["outputs"]) == len(bundle.golden("output"))
    predicted = runner.arrays(str(alone), "output")
    for wanted, got in zip(bundle.golden("output"), predicted, strict=True):
        assert runner.relative_error(wanted[:1], got) <= limit

    together = [bundle.folder / "golden" / name.name.replace("mine", "input") for name in names]
    answer(bundle.run(python, "predict", *together, "--out", alone / "all"))
    predicted = runner.arrays(str(alone / "all"), "output")
    for wanted, got in zip(bundle.golden("output"), predicted, strict=True):
        assert runner.relative_error(wanted, got) <= limit

    measured = answer(bundle.run(python, "bench", "--seconds", 0.2, "--count", 20, "--raw"))
    assert len(measured["latencies"]) >= 20
    assert min(measured["latencies"]) > 0
    summary = answer(bundle.run(python, "bench", "--seconds", 0, "--count", 20))["latencies"]
    assert 0 < summary["p50"] <= summary["p90"] <= summary["p99"]
    assert measured["load"] > 0
    assert measured["peak_memory"] > 0
    assert measured["cpu_share"] > 0
    assert measured["threads"] == 1


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The one JSON object that a command prints."""
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format_", "wanted"),
    [
        ("onnx", r"the runtime is missing: No module .*onnxruntime.*\. Install onnxruntime >= \d"),
        ("tflite", r"the runtime is missing: No module .*tflite_runtime.*\. "
                   r"Install ai-edge-litert >= .* or tflite-runtime >= \d"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["check", "bench"])
def test_a_missing_runtime_is_named_with_the_release_that_is_needed(
    workshop: Workshop,
    environment: Callable[[str], Path],
    format_: str,
    wanted: str,
    command: str,
    tmp_path: Path,
) -> None:
    bundle = make_bundle(workshop, format_, Precision.FP32, tmp_path)
    assert_refused(bundle.run(environment("nothing"), command), 4, wanted)


def assert_refused(done: subprocess.CompletedProcess[str], code: int, wanted: str) -> None:
    """One line on stderr, none on stdout, and the exit code that the docstring promises."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    said = [line for line in done.stderr.splitlines() if not line.startswith("INFO:")]
    assert len(said) == 1, done.stderr
    assert re.match(wanted, said[0]), said[0]


HERE = Path(sys.executable)


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
@pytest.mark.parametrize("command", ["check", "bench"])
@pytest.mark.parametrize("content", [b"", b"no model at all", None], ids=["empty", "text", "cut"])
def test_a_corrupt_model_file_is_named_with_the_runtimes_reason(
    workshop: Workshop, format_: str, command: str, content: bytes | None, tmp_path: Path
) -> None:
    bundle = make_bundle(workshop, format_, Precision.FP32, tmp_path)
    whole = bundle.model.read_bytes()
    bundle.model.write_bytes(whole[: len(whole) // 2] if content is None else content)
    wanted = rf"the runtime cannot load {bundle.model.name}: .+\. It needs \S+ >= \d"
    assert_refused(bundle.run(HERE, command), 4, wanted)


def test_a_missing_model_file_is_named(bundle: Bundle) -> None:
    bundle.model.unlink()
    assert_refused(bundle.run(HERE), 4, r"there is no model file \S+/model\.onnx$")


def test_outputs_that_differ_from_the_golden_ones_exit_with_one(bundle: Bundle) -> None:
    (golden,) = bundle.golden("output")
    golden[3] += 0.5 * np.abs(golden).max()
    runner.save(str(bundle.folder / "golden"), [golden])
    done = bundle.run(HERE)
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert said["ok"] is False
    assert said["relative_error"] > said["limit"]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_golden_output_that_is_no_number_never_passes(bundle: Bundle, wrong: float) -> None:
    (golden,) = bundle.golden("output")
    golden[3, 0] = wrong
    runner.save(str(bundle.folder / "golden"), [golden])
    assert bundle.run(HERE).returncode == 1


@pytest.mark.parametrize(
    ("spoil", "wanted"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), r"cannot read the manifest \S+: "),
        (lambda folder: (folder / "manifest.json").write_text("{"), r"cannot read the manifest "),
        (lambda folder: (folder / "manifest.json").write_text("[]"), r"\S+ is no manifest"),
        (lambda folder: shutil.rmtree(folder / "golden"), r"\S+ holds no sample in output-0\.npy$"),
        (lambda folder: (folder / "golden/output-0.npy").unlink(), r"\S+ holds no sample in out"),
        (lambda folder: (folder / "golden/input-0.npy").write_bytes(b"?"), r"cannot read \S+: "),
        (lambda folder: shutil.copy(folder / "golden/output-0.npy", folder / "golden/output-1.npy"),
         r"2 golden outputs, 1 of the model$"),
    ],
    ids=["no-manifest", "half-a-manifest", "a-list", "no-golden", "no-golden-output",
         "corrupt-input", "another-output"],
)  # fmt: skip
def test_a_spoiled_bundle_is_refused_in_one_line(
    bundle: Bundle, spoil: Callable[[Path], object], wanted: str
) -> None:
    spoil(bundle.folder)
    assert_refused(bundle.run(HERE), 2, wanted)


def test_a_manifest_without_golden_samples_is_said_to_be_so(bundle: Bundle) -> None:
    manifest = bundle.manifest
    del manifest["artifact"]["golden"]
    (bundle.folder / "manifest.json").write_text(json.dumps(manifest))
    for command in ("check", "bench"):
        assert_refused(bundle.run(HERE, command), 2, "the manifest names no golden samples$")


IMAGE = np.zeros((1, 3, 32, 32), np.float32)
SENSORS = np.zeros((1, 8), np.float32)


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
@pytest.mark.parametrize(
    ("inputs", "wanted"),
    [
        ([IMAGE], r"the model takes 2 inputs, not 1$"),
        ([IMAGE, SENSORS, SENSORS], r"the model takes 2 inputs, not 3$"),
        ([IMAGE[..., :31], SENSORS], r"input 0 of the model is float32 \(1, 3, 32, 32\), not .*31"),
        ([SENSORS, IMAGE], r"input 0 of the model is float32 \(1, 3, 32, 32\), not float32 \(1, 8"),
        ([IMAGE, SENSORS.astype(np.int64)], r"input 1 of the model is float32 .* not int64 \(1, 8"),
    ],
    ids=["too-few", "too-many", "too-small", "swapped", "integers"],
)
def test_inputs_that_do_not_fit_are_refused_with_what_the_model_takes(
    workshop: Workshop, format_: str, inputs: list[np.ndarray], wanted: str, tmp_path: Path
) -> None:
    bundle = make_bundle(workshop, format_, Precision.FP32, tmp_path)
    for index, array in enumerate(inputs):
        np.save(tmp_path / f"mine-{index}.npy", array)
    names = [f"mine-{index}.npy" for index in range(len(inputs))]
    assert_refused(bundle.run(HERE, "predict", *names), 2, wanted)


def test_it_keeps_to_the_fastest_of_the_cores_that_it_may_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clocks = {0: 1_800_000, 1: 1_800_000, 2: 2_400_000, 3: 2_400_000}
    for core, clock in clocks.items():
        (tmp_path / f"cpu{core}").mkdir()
        (tmp_path / f"cpu{core}" / "cpuinfo_max_freq").write_text(f"{clock}\n")
    kept: list[int] = []
    monkeypatch.setattr(runner, "CLOCKS", f"{tmp_path}/cpu%d/%s")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: kept.extend(cores))
    assert runner.pinned(1) == [3]
    assert runner.pinned(3) == [1, 2, 3]
    assert runner.pinned(9) == [0, 1, 2, 3]
    assert kept == [3, 1, 2, 3, 0, 1, 2, 3]


def test_an_input_file_that_is_not_there_is_named(bundle: Bundle) -> None:
    assert_refused(bundle.run(HERE, "predict", "none.npy", "none.npy"), 2, "cannot read none.npy")


def test_doubles_are_taken_for_the_models_floats(bundle: Bundle) -> None:
    for index, array in enumerate((IMAGE, SENSORS)):
        np.save(bundle.folder / f"mine-{index}.npy", array.astype(np.float64))
    answer(bundle.run(HERE, "predict", "mine-0.npy", "mine-1.npy"))


@pytest.mark.parametrize(
    ("flags", "is_needed"),
    [
        ("avx2 avx512f avx512_vnni", False),
        ("avx2 avx_vnni", False),
        ("avx2 avx512f", True),
        (None, True),
    ],
)
def test_slow_kernels_are_asked_for_only_where_fast_ones_saturate(
    flags: str | None, is_needed: bool, tmp_path: Path
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    if flags is not None:
        cpuinfo.write_text(f"model name\t: some\nflags\t\t: {flags}\nbugs\t: avx_vnni\n")
    settings = {runner.WITHOUT_VNNI: "1", "other": "2"}
    expected = settings if is_needed else {"other": "2"}
    assert runner.session_settings(settings, str(cpuinfo)) == expected


def test_it_is_written_in_the_syntax_of_python_3_8() -> None:
    source = Path(runner.__file__).read_text()
    ast.parse(source, feature_version=(3, 8))
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(source))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    runtimes = {"numpy", "onnxruntime", "ai_edge_litert", "tflite_runtime"}
    assert imported <= runtimes | set(sys.stdlib_module_names)


def test_a_runtime_that_is_too_old_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    bundle = make_bundle(workshop, "onnx", Precision.FP32, tmp_path)
    edit_manifest(bundle, minimum_runtime={"onnxruntime": "99.0"})
    done = bundle.run(Path(sys.executable), "check")
    assert done.returncode == 4
    assert "not known to run this rightly. Install onnxruntime >= 99.0" in done.stderr
