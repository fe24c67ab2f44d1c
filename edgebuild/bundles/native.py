"""Puts a bundle into a folder that runs on a device without Python."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from pydantic import TypeAdapter

from edgebuild import arm64
from edgebuild.bundles.destination import check_writable
from edgebuild.bundles.manifest import ArtifactRecord, Bundle
from edgebuild.bundles.verify import DEADLINE, Verification
from edgebuild.vocabulary.contracts import Completed, Device, Progress
from edgebuild.vocabulary.errors import DeviceError, InputError, InvalidBundle, InvalidDestination
from edgebuild.vocabulary.measurement import Measurement

SOURCES = Path(__file__).parents[1] / "native"
MACHINES = ("aarch64", "x86_64")
# Each runtime's C library in its wheel, the package that brings it, and the terms of both.
LIBRARIES = {
    "onnx": ("onnxruntime/capi", "libonnxruntime.so.*", "onnxruntime", "MIT"),
    "tflite": ("ai_edge_litert", "libLiteRt.so", "ai-edge-litert", "Apache-2.0"),
}
FLAGS = ("-std=gnu11", "-O2", "-s")
# The oldest C library that zig can link for on both machines, and that has 64-bit ARM.
GLIBC = "2.17"


def pack_native(
    bundle: Bundle, folder: Path, machine: str, progress: Progress | None = None
) -> Path:
    """Writes the runner, the runtime's library, the model and the golden samples there.

    On the device `./runner` checks the golden outputs and `./runner bench` measures.

    Raises:
        InputError: a machine that is none of `MACHINES`, or no compiler for it.
        InvalidDestination: the folder is there already, or cannot be written.
        DeviceError: the runtime's wheel for another machine cannot be fetched.
    """
    if machine not in MACHINES:
        raise InputError(f"no runner is made for {machine!r}, but for {' and '.join(MACHINES)}")
    if folder.exists():
        raise InvalidDestination(f"{folder} exists: give a new folder")
    check_writable(folder)
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=".native-") as scratch:
        made = Path(scratch) / "runner"
        _fill(bundle, made, machine, progress)
        os.rename(made, folder)
    return folder


def verify_native(folder: Path, device: Device) -> Verification:
    """Copies the folder to a device and replays the golden inputs there, without Python.

    Raises:
        InvalidBundle: other outputs.
        DeviceError: the runtime cannot be loaded there, or cannot load the model.
    """
    done = _run_on(device, folder, "check")
    found = json.loads(done.stdout)
    if not found["ok"]:
        raise InvalidBundle(
            f"{folder}: the golden outputs differ by {found['relative_error']:.2g} on "
            f"{device.name} ({found['runtime']}), where {found['limit']:g} is allowed"
        )
    files = sum(path.is_file() for path in folder.rglob("*"))
    return Verification(files, found["relative_error"], found["limit"], found["runtime"])


def bench_native(folder: Path, device: Device, seconds: float, count: int) -> Measurement:
    """Copies the folder to a device and measures there, without Python.

    Raises:
        InputError: the device is emulated, and its time no device's.
        DeviceError: the runtime cannot be loaded there, or cannot load the model.
    """
    refuse_emulated(device)
    done = _run_on(device, folder, "bench", str(seconds), str(count), "raw")
    return TypeAdapter(Measurement).validate_json(done.stdout)


def refuse_emulated(device: Device) -> None:
    """Time on it would look like a device's."""
    if not device.keeps_time:
        raise InputError(f"what {device.name} takes means nothing: bench on the device itself")


def _run_on(device: Device, folder: Path, *arguments: str) -> Completed:
    there = device.push(folder.absolute())
    done = device.run([f"{there}/runner", *arguments], DEADLINE)
    if done.returncode not in (0, 1) or not done.stdout.strip():
        raise DeviceError(f"{folder}: the runner failed on {device.name}: {done.reason}")
    return done


def compile_runner(program: Path, machine: str) -> None:
    """Compiles the runner: by zig, whose program runs on older systems, or else by a gcc.

    Raises:
        InputError: no compiler for the machine is installed.
    """
    sources = sorted(str(path) for path in SOURCES.glob("*.c"))
    command = [*_compiler(machine), *FLAGS, "-o", str(program), *sources, "-ldl", "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InputError(f"{' '.join(command[:4])} … fails:\n{done.stderr.strip()}")


def _fill(bundle: Bundle, folder: Path, machine: str, progress: Progress | None) -> None:
    artifact = bundle.manifest.artifact
    folder.mkdir()
    compile_runner(folder / "runner", machine)
    library = _library(artifact.format, machine, progress)
    shutil.copyfile(library, folder / library.name)
    # Under a name of ours: one from somebody else's manifest could be the runner's.
    shutil.copyfile(bundle.path / artifact.file, folder / f"model.{artifact.format}")
    shutil.copytree(bundle.path / artifact.golden.folder, folder / "golden")
    facts = [_line(bundle, word, value) for word, value in _spec(bundle, library.name)]
    (folder / "spec.txt").write_text("".join(facts), encoding="utf-8")
    _, _, package, terms = LIBRARIES[artifact.format]
    notice = f"\n{library.name}\n    {terms}, from {package} {version(package)}.\n"
    ours = "\nrunner\n    Apache-2.0, from edgebuild.\n"
    before = bundle.path / "NOTICE"
    told = before.read_text(encoding="utf-8") if before.exists() else ""
    (folder / "NOTICE").write_text(told + notice + ours, encoding="utf-8")


def _compiler(machine: str) -> list[str]:
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-linux-gnu.{GLIBC}"]
    is_native = machine == platform.machine()
    for name in [f"{machine}-linux-gnu-gcc", *(["cc"] if is_native else [])]:
        if shutil.which(name):
            return [name]
    packages = "gcc" if is_native else f"gcc-{machine.replace('_', '-')}-linux-gnu"
    raise InputError(
        f"no compiler for {machine} is installed: pip install 'edgebuild[native]', or "
        f"apt install {packages}"
    )


def _library(format_: str, machine: str, progress: Progress | None) -> Path:
    """The runtime's C library for the machine, in the release that is installed here."""
    place, name, package, _ = LIBRARIES[format_]
    if machine == platform.machine():
        spec = importlib.util.find_spec(place.partition("/")[0])
        site = Path(str(spec.origin)).parents[1] if spec else Path()
    elif machine == "aarch64":
        site = arm64.parts(progress).site
    else:
        raise InputError(f"the library of {package} for {machine} is only found on such a machine")
    found = sorted((site / place).glob(name))
    if not found:
        raise InputError(f"{package} brings no {name}: another release of it is installed")
    return found[0]


def _spec(bundle: Bundle, library: str) -> Iterator[tuple[str, object]]:
    """What the runner must know, one fact a line; run.py reads the same from the manifest."""
    artifact = bundle.manifest.artifact
    package = LIBRARIES[artifact.format][2]
    yield "format", artifact.format
    yield "library", library
    yield "runtime", f"{package} {version(package)}"
    yield "model", f"model.{artifact.format}"
    yield "golden", "golden"
    yield "threads", bundle.manifest.threads
    yield "limit", artifact.golden.limit
    yield from _names(artifact)


def _line(bundle: Bundle, word: str, value: object) -> str:
    if "\n" in str(value):
        raise InvalidBundle(f"{bundle.path}: {word} {value!r} is no name in one line")
    return f"{word} {value}\n"


def _names(artifact: ArtifactRecord) -> Iterator[tuple[str, object]]:
    for name in artifact.inputs:
        yield "input", name
    for name in artifact.outputs:
        yield "output", name
    for key, value in artifact.settings.items():
        yield "setting", f"{key} {value}"
