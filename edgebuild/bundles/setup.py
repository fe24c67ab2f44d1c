"""Gives a device's Python what bundles need: numpy and the runtimes, fetched here for it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgebuild.bundles.stand_in import other_processor
from edgebuild.vocabulary.contracts import Device, Progress
from edgebuild.vocabulary.errors import DeviceError, InputError
from edgebuild.vocabulary.target import Target
from edgebuild.vocabulary.units import Seconds

DEADLINE = Seconds(600.0)
# The packages that bring a runtime, the first one to be installed, and what each is imported by.
PACKAGES = {
    "onnxruntime": {"onnxruntime": "onnxruntime"},
    "litert": {"ai-edge-litert": "ai_edge_litert.interpreter", "tflite-runtime": "tflite_runtime"},
}
ASK = """
import importlib, importlib.metadata, json, platform, sys
found = {}
for pair in sys.argv[1:]:
    package, _, module = pair.partition("=")
    try:
        importlib.import_module(module)
        found[package] = importlib.metadata.version(package)
    except Exception as error:
        found[package] = ""
libc = platform.libc_ver()
print(json.dumps([list(sys.version_info[:2]), platform.machine(), libc[0], libc[1], found]))
"""
# Beside the copies of files; the jobs' Python looks there first.
UNPACK = """
import os, shutil, sys, zipfile
site = os.path.join(os.environ["EDGEBUILD_ROOT"], "site")
part, old = site + ".part", site + ".old"
for leftover in (part, old):
    shutil.rmtree(leftover, ignore_errors=True)
if os.path.isdir(site):
    shutil.copytree(site, part)
for wheel in sys.argv[1:]:
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(part)
if os.path.isdir(site):
    os.rename(site, old)
os.rename(part, site)
shutil.rmtree(old, ignore_errors=True)
"""
# The newest C library that wheels are built for; pip takes no older one for granted.
NEWEST_GLIBC = 40


@dataclass(frozen=True)
class Equipment:
    """A device's Python: its release, the machine, its glibc ("" for another C library), and the
    releases of what it can import by package, "" for what it cannot."""

    python: tuple[int, int]
    machine: str
    glibc: str
    packages: dict[str, str]

    def lacks(self, runtimes: Sequence[str]) -> list[str]:
        """The packages to install, so that all of these runtimes are there."""
        missing = [] if self.packages["numpy"] else ["numpy"]
        for runtime in runtimes:
            if not any(self.packages[package] for package in PACKAGES[runtime]):
                missing.append(next(iter(PACKAGES[runtime])))
        return missing


def equipment(device: Device) -> Equipment:
    """Asks the device's Python what it is and has.

    Raises:
        DeviceError: there is no Python, or it cannot say.
    """
    modules = {"numpy": "numpy"}
    for packages in PACKAGES.values():
        modules |= packages
    pairs = [f"{package}={module}" for package, module in modules.items()]
    done = device.run(["python", "-c", ASK, *pairs], DEADLINE)
    if done.returncode != 0:
        raise DeviceError(f"the Python of {device.name} cannot say what it has: {done.reason}")
    python, machine, libc, release, found = json.loads(done.stdout)
    return Equipment(tuple(python), machine, release if libc == "glibc" else "", found)


def refuse_unfit(device: Device, target: Target, runtimes: Sequence[str]) -> None:
    """Makes sure that a device can be the target, and can run what is built for it.

    Raises:
        InputError: another kind of processor than the target's.
        DeviceError: a runtime, or numpy, is missing; says how to install it.
    """
    found = equipment(device)
    if other := other_processor(device, target, found.machine):
        raise InputError(f"{other}: figures of one would pass for the other's")
    if missing := found.lacks(runtimes):
        raise DeviceError(
            f"{device.name} lacks {' and '.join(missing)}: `edgebuild device setup` installs it"
        )


def set_up(device: Device, runtimes: Sequence[str], progress: Progress) -> Equipment:
    """Installs what is missing there; the device itself needs no way to the internet.

    Returns:
        What it has now.

    Raises:
        InputError: this machine, whose Python is the user's own affair.
        DeviceError: no Python or no glibc there, no wheels for it, or they do not work there.
    """
    if device.is_here:
        raise InputError(f"{device.name} is this machine: pip installs what its Python needs")
    found = equipment(device)
    missing = found.lacks(runtimes)
    if not missing:
        return found
    with tempfile.TemporaryDirectory(prefix="edgebuild-wheels-") as scratch:
        with progress.step(f"Fetching {', '.join(missing)} for {found.machine}"):
            wheels = _wheels(device, found, missing, Path(scratch))
        there = device.push(Path(scratch))
        paths = [f"{there}/{wheel.name}" for wheel in wheels]
        with progress.step(f"Installing on {device.name}"):
            done = device.run(["python", "-c", UNPACK, *paths], DEADLINE)
    if done.returncode != 0:
        raise DeviceError(f"{device.name} cannot unpack the wheels: {done.reason}")
    after = equipment(device)
    if broken := after.lacks(runtimes):
        raise DeviceError(f"{' and '.join(broken)} cannot be imported on {device.name}")
    return after


def _wheels(device: Device, found: Equipment, packages: Sequence[str], folder: Path) -> list[Path]:
    """Fetches one wheel a package, by pip, whose cache spares what was fetched before."""
    release = ".".join(map(str, found.python))
    options = ["--only-binary", ":all:", "--no-deps", "--quiet", "--disable-pip-version-check"]
    options += ["--implementation", "cp", "--python-version", release, "--dest", str(folder)]
    options += [word for name in _platforms(device, found) for word in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "download", *options, *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise DeviceError(
            f"no wheels of {', '.join(packages)} for Python {release} on {found.machine} with "
            f"glibc {found.glibc}: {reason}"
        )
    return sorted(folder.glob("*.whl"))


def _platforms(device: Device, found: Equipment) -> Iterator[str]:
    """What its C library bears, as PEP 600 names it, the newest first."""
    major, _, minor = found.glibc.partition(".")
    if major != "2" or not minor.isdigit():
        raise DeviceError(
            f"{device.name} has no glibc, which the runtimes' wheels need: "
            "`edgebuild native` runs without Python"
        )
    for number in range(min(int(minor), NEWEST_GLIBC), 16, -1):
        yield f"manylinux_2_{number}_{found.machine}"
    yield f"manylinux2014_{found.machine}"
