"""Proves on ARM64 code which bits an artifact computes there; emulated, and so never a time."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgebuild import catalog, runner
from edgebuild.bundles._loader import run_loader
from edgebuild.bundles.manifest import ArmRecord, Bundle
from edgebuild.vocabulary.contracts import Device, Progress
from edgebuild.vocabulary.errors import DeviceError, InvalidBundle
from edgebuild.vocabulary.units import Seconds

# The oldest 64-bit core that is common, and the first common one with integer dot products: between
# them the runtimes choose other kernels.
CPUS = ("cortex-a53", "cortex-a76")
DEADLINE = Seconds(1800.0)
# What LiteRT says where its fast kernels are used; without them it falls silent, not over.
DELEGATE_LINE = "XNNPACK delegate for CPU"
# The kernel's words for the processor's features, as programs find them.
ASK = """
import json, os
lines = open("/proc/cpuinfo").read().splitlines()
features = next(line for line in lines if line.startswith("Features")).split(":")[1].split()
print(json.dumps([os.uname().machine, features]))
"""


def arm_proofs(bundle: Bundle, progress: Progress) -> tuple[ArmRecord, ...]:
    """Proves a bundle on both processors.

    Raises:
        DeviceError: the emulator cannot be had, or a runtime fails on it.
        InvalidBundle: the outputs are farther from the golden ones than the bundle allows.
    """
    found = []
    with progress.step("Proving on ARM64, emulated", total=len(CPUS)) as step:
        for cpu in CPUS:
            with catalog.device(f"emulated://{cpu}") as device:
                found.append(prove_on_arm(bundle, device))
            step.advance(cpu)
    return tuple(found)


def prove_on_arm(bundle: Bundle, device: Device) -> ArmRecord:
    """Runs the golden inputs there and counts the values that are not the build machine's.

    Raises:
        DeviceError: no ARM64, no fast kernels, or a runtime that fails.
        InvalidBundle: the outputs are farther from the golden ones than the bundle allows.
    """
    artifact = bundle.manifest.artifact
    machine, features = _ask(device)
    if machine != "aarch64":
        raise DeviceError(f"{device.name} is no ARM64 processor, but {machine}")
    golden = _arrays(bundle.path / artifact.golden.folder)
    found, runtime, said = _outputs(bundle, device)
    if artifact.format == "tflite" and DELEGATE_LINE not in said:
        raise DeviceError(f"LiteRT ran without XNNPACK's kernels on {device.name}")
    error = max(map(runner.relative_error, golden, found))
    limit = artifact.golden.limit
    if len(golden) != len(found) or not error <= limit:
        raise InvalidBundle(
            f"{bundle.path}: the golden outputs differ by {error:.2g} on {device.name}, "
            f"where {limit:g} is allowed"
        )
    return ArmRecord(
        where=device.name,
        features=features,
        runtime=runtime,
        kernels="XNNPACK" if artifact.format == "tflite" else "CPUExecutionProvider",
        values=sum(each.size for each in golden),
        differing=sum(map(_differing, golden, found)),
        relative_error=error,
    )


def _ask(device: Device) -> tuple[str, tuple[str, ...]]:
    done = device.run(["python", "-c", ASK], DEADLINE)
    if done.returncode != 0:
        raise DeviceError(f"{device.name} does not say which processor it has: {done.reason}")
    machine, features = json.loads(done.stdout)
    return machine, tuple(features)


def _outputs(bundle: Bundle, device: Device) -> tuple[Sequence[np.ndarray], str, str]:
    """What the artifact says to the golden inputs there, the runtime, and what that complained."""
    golden = device.push(bundle.path.absolute() / bundle.manifest.artifact.golden.folder)
    with tempfile.TemporaryDirectory(prefix="edgebuild-") as scratch:
        out = f"{device.push(Path(scratch))}/outputs"
        done = run_loader(bundle, device, "outputs", golden, out, deadline=DEADLINE)
        if done.returncode != 0:
            raise DeviceError(f"{bundle.path}: it does not run on {device.name}: {done.reason}")
        here = Path(scratch) / "pulled"
        device.pull(out, here)
        return _arrays(here), json.loads(done.stdout)["runtime"], done.stderr


def _arrays(folder: Path) -> list[np.ndarray]:
    """`output-0.npy`, `output-1.npy` … of a folder."""
    count = len(list(folder.glob("output-*.npy")))
    return [np.load(folder / f"output-{index}.npy") for index in range(count)]


def _differing(wanted: np.ndarray, got: np.ndarray) -> int:
    """How many values are not the same bit by bit; all of them where it is another type."""
    if wanted.dtype != got.dtype or wanted.shape != got.shape:
        return int(wanted.size)
    bytes_of = [np.ascontiguousarray(each).view(np.uint8) for each in (wanted, got)]
    differs = (bytes_of[0] != bytes_of[1]).reshape(wanted.size, -1)
    return int(differs.any(axis=1).sum())
