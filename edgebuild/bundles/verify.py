"""Verifies a bundle: every file's hash, and the golden outputs in the runtime."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgebuild.bundles._loader import run_loader
from edgebuild.bundles.manifest import FILE, Bundle
from edgebuild.bundles.pack import file_digest
from edgebuild.vocabulary.contracts import Completed, Device
from edgebuild.vocabulary.errors import DeviceError, InvalidBundle
from edgebuild.vocabulary.units import Seconds

DEADLINE = Seconds(600.0)


@dataclass(frozen=True)
class Replay:
    """How near the golden answers were, and which runtime gave them."""

    relative_error: float
    limit: float
    runtime: str


@dataclass(frozen=True)
class Verification:
    """What was found: how many files are intact, and how near the golden outputs were."""

    files: int
    relative_error: float
    limit: float
    runtime: str


def verify(bundle: Bundle, device: Device) -> Verification:
    """Compares hashes, then replays the golden inputs on the device.

    Raises:
        InvalidBundle: a missing, changed or added file, or other outputs.
        DeviceError: the runtime is missing or cannot load the model.
    """
    refuse_changed_files(bundle.path, bundle.manifest.files, _files(bundle.path))
    done = run_loader(bundle, device, "check", deadline=DEADLINE)
    found = replayed(done, bundle.path, device, "outputs")
    return Verification(
        len(bundle.manifest.files), found.relative_error, found.limit, found.runtime
    )


def replayed(done: Completed, folder: Path, device: Device, golden: str, scale: str = "") -> Replay:
    """What a loader's `check` has printed; `golden` is what it compared, `scale` its error's unit.

    Raises:
        InvalidBundle: it found something else.
        DeviceError: the runtime is missing or cannot load the model.
    """
    # Python itself ends with 1 where run.py fails in a way that it did not foresee.
    if done.returncode not in (0, 1) or not done.stdout.strip():
        raise DeviceError(f"{folder}: the check failed on {device.name}: {done.reason}")
    found = json.loads(done.stdout)
    if not found["ok"]:
        raise InvalidBundle(
            f"{folder}: the golden {golden} differ by {found['relative_error']:.2g}{scale} on "
            f"{device.name} ({found['runtime']}), where {found['limit']:g} is allowed"
        )
    return Replay(found["relative_error"], found["limit"], found["runtime"])


def refuse_changed_files(folder: Path, known: Mapping[str, str], present: Iterable[str]) -> None:
    """Compares the files that are there with the hashes of those that were built.

    Raises:
        InvalidBundle: a missing, changed or added file.
    """
    for name, digest in known.items():
        path = folder / name
        if not path.is_file():
            raise InvalidBundle(f"{folder}: {name} is missing: build it again")
        if file_digest(path) != digest:
            raise InvalidBundle(f"{folder}: {name} was changed since it was built")
    if added := sorted(set(present) - set(known)):
        raise InvalidBundle(f"{folder}: {added[0]} is not part of the bundle")


def _files(folder: Path) -> Iterator[str]:
    """All but the manifest, and what Python leaves beside a loader that was run."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and "__pycache__" not in path.parts and name != FILE:
            yield name
