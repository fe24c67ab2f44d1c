"""Measures a bundle again, on one device or several, with the loader that also travels in it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from edgebuild import runner
from edgebuild.bundles.manifest import FILE, Bundle
from edgebuild.vocabulary.contracts import Device, Fit, MemoryTrial
from edgebuild.vocabulary.errors import DeviceError, EdgebuildError
from edgebuild.vocabulary.measurement import Evidence, Measurement
from edgebuild.vocabulary.units import Seconds, format_size

MARGIN = Seconds(600.0)


@dataclass(frozen=True)
class Effort:
    """How long and how often a bundle is run; as many threads as it says itself unless given."""

    seconds: float
    count: int
    threads: int | None = None


@dataclass(frozen=True)
class Benched:
    """What one device did: a measurement made there, or the reason why there is none."""

    device: str
    where: str
    measurement: Measurement | None = None
    memory_trial: MemoryTrial | None = None
    error: str = ""
    evidence: Evidence = Evidence.MEASURED


def bench_all(bundle: Bundle, devices: Mapping[str, Device], effort: Effort) -> tuple[Benched, ...]:
    """Runs it on all devices side by side; one that fails does not stop the others."""
    # Two on this machine would measure each other.
    here = threading.Lock()

    def one(name: str, device: Device) -> Benched:
        try:
            with here if device.is_here else nullcontext(), device:
                return bench(bundle, name, device, effort)
        except EdgebuildError as error:
            return Benched(name, device.name, error=str(error))

    with ThreadPoolExecutor(len(devices)) as pool:
        running = [pool.submit(one, *named) for named in devices.items()]
        try:
            return tuple(future.result() for future in running)
        except BaseException:
            # What waits for a device must not keep Ctrl-C waiting.
            for device in devices.values():
                device.__exit__(None, None, None)
            raise


def bench(bundle: Bundle, name: str, device: Device, effort: Effort) -> Benched:
    """Latency, memory and load time in a fresh process on the device.

    Raises:
        DeviceError: the runtime is missing, cannot load the model, or takes too long.
    """
    # Our own loader, not the bundle's: what somebody else packed is data here, not code.
    loader = device.push(Path(runner.__file__))
    manifest = f"{device.push(bundle.path.absolute())}/{FILE}"
    options = ["--seconds", str(effort.seconds), "--count", str(effort.count)]
    chosen = ["--threads", str(effort.threads)] if effort.threads else []
    command = ["python", loader, "--manifest", manifest, *chosen, "bench", "--raw", *options]
    done = device.run(command, Seconds(effort.seconds + MARGIN))
    if done.memory and done.memory.fit is Fit.OOM_KILLED:
        limit = format_size(done.memory.limit)
        error = f"the kernel killed it at the limit of {limit} ({done.memory.evidence})"
        return Benched(name, device.name, memory_trial=done.memory, error=error)
    if done.returncode != 0:
        raise DeviceError(f"{bundle.path}: bench failed on {device.name}: {done.reason}")
    try:
        found = TypeAdapter(Measurement).validate_json(done.stdout)
    except ValidationError:
        raise DeviceError(f"{device.name}: what bench printed there is no measurement") from None
    return Benched(name, f"{device.name}, {found.machine}", found, done.memory)
