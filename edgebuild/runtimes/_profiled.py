"""Has a runtime's own profile taken on a device, by a script that travels there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from edgebuild.samples import StoredSamples
from edgebuild.vocabulary.artifact import Artifact
from edgebuild.vocabulary.calibration import ProfileEffort
from edgebuild.vocabulary.contracts import Device
from edgebuild.vocabulary.errors import DeviceError
from edgebuild.vocabulary.units import Seconds

DEADLINE = Seconds(600.0)


def profiled(
    script: ModuleType,
    artifact: Artifact,
    samples: StoredSamples,
    device: Device,
    options: Sequence[str],
    threads: int,
    effort: ProfileEffort,
) -> list[Any]:
    """The events that the script prints there; `options` are what it alone wants to know.

    Raises:
        DeviceError: the runtime is missing there, or fails.
    """
    words = [
        *("python", device.push(Path(str(script.__file__)))),
        *(device.push(artifact.path), device.push(samples.folder), *options),
        *map(str, (threads, effort.hot, effort.cold)),
    ]
    done = device.run(words, DEADLINE)
    if done.returncode != 0:
        name = {"litert": "LiteRT"}.get(artifact.runtime, artifact.runtime)
        raise DeviceError(f"{name} cannot profile on {device.name}: {done.reason}")
    events: list[Any] = json.loads(done.stdout)
    return events
