"""Measures a bundle again, on one device or several, with the loader that also travels in it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from edgebuild import catalog
from edgebuild.bundles._loader import run_loader
from edgebuild.bundles.manifest import Bundle
from edgebuild.bundles.metered import metered
from edgebuild.bundles.native import bench_native, pack_native, refuse_emulated
from edgebuild.bundles.run_on import run_on
from edgebuild.bundles.side_by_side import side_by_side
from edgebuild.bundles.stand_in import why_not_target
from edgebuild.vocabulary.contracts import Completed, Device, Fit, MemoryTrial, Meter
from edgebuild.vocabulary.errors import DeviceError, InputError
from edgebuild.vocabulary.measurement import Evidence, Measurement, Outcome, Sustained
from edgebuild.vocabulary.power import Draw
from edgebuild.vocabulary.units import Bytes, Seconds, format_size

MARGIN = Seconds(600.0)


@dataclass(frozen=True)
class Effort:
    """How long and how often a bundle is run; as many threads as it says itself unless given.

    With a meter, as NAME[=SOURCE], power is read meanwhile, and the run takes all of its time.
    `sustained` is how long it runs once more, to see what is left when it is warm; `native` has
    the runner without Python measure.
    """

    seconds: float
    count: int
    threads: int | None = None
    meter: str = ""
    sustained: Seconds | None = None
    native: bool = False


@dataclass(frozen=True)
class Benched:
    """What one device did: a measurement made there, or the reason why there is none.

    `power` is what it drew meanwhile, if a meter was read; else `power_error` says why not.
    `outcome` is what the measurement says of the bundle's latency budget, if it has one and the
    device can be its target; else `unjudged` says why it cannot.
    """

    device: str
    where: str
    measurement: Measurement | None = None
    memory_trial: MemoryTrial | None = None
    error: str = ""
    evidence: Evidence = Evidence.MEASURED
    power: Draw | None = None
    power_error: str = ""
    outcome: Outcome | None = None
    sustained: Sustained | None = None
    unjudged: str = ""


def bench_all(bundle: Bundle, devices: Mapping[str, Device], effort: Effort) -> tuple[Benched, ...]:
    """Runs it on all devices side by side; one that fails does not stop the others."""
    return side_by_side(
        devices,
        lambda name, device: bench(bundle, name, device, effort),
        lambda name, device, error: Benched(name, device.name, error=str(error)),
    )


def bench(bundle: Bundle, name: str, device: Device, effort: Effort) -> Benched:
    """Latency, memory and load time in a fresh process on the device, and power by a meter.

    Raises:
        DeviceError: the runtime is missing, cannot load the model, or takes too long; or the meter
            cannot be read to begin with, and nothing is run.
        InputError: the device is emulated, and its time no device's.
    """
    refuse_emulated(device)
    limit = bundle.manifest.budget.latency_p99
    found = _metered(bundle, name, device, effort)
    if found.measurement:
        found = replace(found, unjudged=why_not_target(device, found.where, bundle.manifest.target))
    if found.measurement and limit is not None and not found.unjudged:
        found = replace(found, outcome=found.measurement.outcome(limit))
    if found.measurement and effort.sustained:
        found = replace(found, sustained=run_on(bundle, device, effort.sustained, effort.threads))
    return found


def _metered(bundle: Bundle, name: str, device: Device, effort: Effort) -> Benched:
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
    """The meter, read where it is: on the device, or in the file that an external one writes."""
    is_file = text.partition("=")[0] == "csv"
    return catalog.meter(text, None if device.is_here or is_file else device)


def _run(bundle: Bundle, name: str, device: Device, effort: Effort) -> Benched:
    if effort.native:
        return _run_native(bundle, name, device, effort)
    options = ["--seconds", str(effort.seconds), "--count", str(effort.count)]
    options += ["--fill"] if effort.meter else []
    words = [*_threads(effort), "bench", "--raw", *options]
    done = run_loader(bundle, device, *words, deadline=Seconds(effort.seconds + MARGIN))
    if done.memory and done.memory.fit is Fit.OOM_KILLED:
        limit = format_size(done.memory.limit)
        error = f"the kernel killed it at the limit of {limit} ({done.memory.evidence})"
        return Benched(name, device.name, memory_trial=done.memory, error=error)
    if done.returncode != 0:
        raise DeviceError(
            f"{bundle.path}: bench failed on {device.name}: {done.reason}{_remedy(device, done)}"
        )
    try:
        found = TypeAdapter(Measurement).validate_json(done.stdout)
    except ValidationError:
        raise DeviceError(f"{device.name}: what bench printed there is no measurement") from None
    trial = done.memory and with_cached(done.memory, found)
    return Benched(name, f"{device.name}, {found.machine}", found, trial)


def with_cached(trial: MemoryTrial, found: Measurement) -> MemoryTrial:
    """A trial that says where its process held more than the limit that it kept.

    The kernel charges a page of a file to whoever reads it first. Libraries that others here have
    read before are charged to nobody in the group; and a device short of memory drops such pages
    and reads them again.
    """
    held = Bytes(found.baseline_memory + found.peak_memory)
    if trial.fit is not Fit.FITS or held <= trial.limit:
        return trial
    told = (
        f"; but the process held {format_size(held)}, with pages of libraries that were in this "
        "machine's page cache before: a device would have to read them again and again"
    )
    return replace(trial, evidence=trial.evidence + told)


def _run_native(bundle: Bundle, name: str, device: Device, effort: Effort) -> Benched:
    """With the runner without Python, which is made for the device's machine first."""
    if effort.meter or effort.sustained:
        raise InputError("the runner without Python knows no meters, and no sustained runs")
    if effort.threads:
        bundle = replace(bundle, manifest=replace(bundle.manifest, threads=effort.threads))
    asked = device.run(["uname", "-m"], MARGIN)
    with tempfile.TemporaryDirectory(prefix="edgebuild-native-") as scratch:
        folder = pack_native(bundle, Path(scratch) / "native", asked.stdout.strip())
        found = bench_native(folder, device, effort.seconds, effort.count)
    return Benched(name, f"{device.name}, {found.machine}", found)


def _threads(effort: Effort) -> list[str]:
    return ["--threads", str(effort.threads)] if effort.threads else []


def _remedy(device: Device, done: Completed) -> str:
    """What a user can do about a Python that lacks something."""
    is_missing = any(words in done.reason for words in ("runtime is missing", "No module named"))
    return ". `edgebuild device setup` installs it" if is_missing and not device.is_here else ""
