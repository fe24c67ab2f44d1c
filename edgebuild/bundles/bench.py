"""Measures a bundle again, on one device or several, with the loader that also travels in it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace

from pydantic import TypeAdapter, ValidationError

from edgebuild import catalog
from edgebuild.bundles._loader import run_loader
from edgebuild.bundles.manifest import Bundle
from edgebuild.bundles.metered import metered
from edgebuild.vocabulary.contracts import Device, Fit, MemoryTrial, Meter
from edgebuild.vocabulary.errors import DeviceError, EdgebuildError, InputError
from edgebuild.vocabulary.measurement import Evidence, Measurement
from edgebuild.vocabulary.power import Draw
from edgebuild.vocabulary.units import Seconds, format_size

MARGIN = Seconds(600.0)


@dataclass(frozen=True)
class Effort:
    """How long and how often a bundle is run; as many threads as it says itself unless given.

    With a meter, as NAME[=SOURCE], power is read meanwhile, and the run takes all of its time.
    """

    seconds: float
    count: int
    threads: int | None = None
    meter: str = ""


@dataclass(frozen=True)
class Benched:
    """What one device did: a measurement made there, or the reason why there is none.

    `power` is what it drew meanwhile, if a meter was read; else `power_error` says why not.
    """

    device: str
    where: str
    measurement: Measurement | None = None
    memory_trial: MemoryTrial | None = None
    error: str = ""
    evidence: Evidence = Evidence.MEASURED
    power: Draw | None = None
    power_error: str = ""


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
    """Latency, memory and load time in a fresh process on the device, and power by a meter.

    Raises:
        DeviceError: the runtime is missing, cannot load the model, or takes too long; or the meter
            cannot be read to begin with, and nothing is run.
        InputError: the device is emulated, and its time no device's.
    """
    refuse_emulated(device)
    if not effort.meter:
        return _run(bundle, name, device, effort)
    runs: list[Benched] = []

    def once() -> Measurement:
        runs.append(_run(bundle, name, device, effort))
        measurement = runs[-1].measurement
        if measurement is None:
            raise DeviceError(runs[-1].error)
        return measurement

    meter = _meter(effort.meter, device)
    found = metered(meter, device, Seconds(effort.seconds), once)
    return replace(runs[-1], power=found.draw, power_error=found.unavailable)


def _meter(text: str, device: Device) -> Meter:
    """The meter; of this machine, or one that writes a file here."""
    if not device.is_here and not text.startswith("csv"):
        raise InputError(
            f"{text} would be read on {device.name} while that is busy: put an external meter on "
            "its supply, and read its file by csv=FILE"
        )
    return catalog.meter(text)


def _run(bundle: Bundle, name: str, device: Device, effort: Effort) -> Benched:
    options = ["--seconds", str(effort.seconds), "--count", str(effort.count)]
    options += ["--fill"] if effort.meter else []
    chosen = ["--threads", str(effort.threads)] if effort.threads else []
    words = [*chosen, "bench", "--raw", *options]
    done = run_loader(bundle, device, *words, deadline=Seconds(effort.seconds + MARGIN))
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


def refuse_emulated(device: Device) -> None:
    """Time on it would look like a device's."""
    if not device.keeps_time:
        raise InputError(f"what {device.name} takes means nothing: bench on the device itself")
