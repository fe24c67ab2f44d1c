"""Measures a bundle again, with the loader that also travels in it."""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter

from edgebuild import runner
from edgebuild.bundles.manifest import FILE, Bundle
from edgebuild.vocabulary.contracts import Device
from edgebuild.vocabulary.errors import DeviceError, InputError
from edgebuild.vocabulary.measurement import Measurement
from edgebuild.vocabulary.units import Seconds

MARGIN = Seconds(600.0)


def bench(
    bundle: Bundle,
    device: Device,
    seconds: float,
    count: int,
    threads: int | None,
    fills_time: bool = False,
) -> Measurement:
    """Latency, memory and load time in a fresh process on the device.

    A fast model that has its samples sooner goes on for all of the time where `fills_time` says so.

    Raises:
        DeviceError: the runtime is missing, cannot load the model, or takes too long.
        InputError: the device is emulated, and its time no device's.
    """
    refuse_emulated(device)
    # Our own loader, not the bundle's: what somebody else packed is data here, not code.
    loader = device.push(Path(runner.__file__))
    manifest = f"{device.push(bundle.path.absolute())}/{FILE}"
    options = ["--seconds", str(seconds), "--count", str(count), *["--fill"] * fills_time]
    chosen = ["--threads", str(threads)] if threads else []
    command = ["python", loader, "--manifest", manifest, *chosen, "bench", "--raw", *options]
    done = device.run(command, Seconds(seconds + MARGIN))
    if done.returncode != 0:
        raise DeviceError(f"{bundle.path}: bench failed on {device.name}: {done.reason}")
    return TypeAdapter(Measurement).validate_json(done.stdout)


def refuse_emulated(device: Device) -> None:
    """Time on it would look like a device's."""
    if not getattr(device, "keeps_time", True):
        raise InputError(f"what {device.name} takes means nothing: bench on the device itself")
