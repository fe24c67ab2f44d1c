"""The command that takes a runtime's own profile on a device, by a script that travels there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from edgebuild.samples import StoredSamples
from edgebuild.vocabulary.artifact import Artifact
from edgebuild.vocabulary.calibration import ProfileEffort
from edgebuild.vocabulary.contracts import Device


def command(
    script: ModuleType,
    artifact: Artifact,
    samples: StoredSamples,
    device: Device,
    options: Sequence[str],
    threads: int,
    effort: ProfileEffort,
) -> list[str]:
    """The script with its arguments; `options` are what it alone wants to know."""
    return [
        device.push(Path(str(script.__file__))),
        *(device.push(artifact.path), device.push(samples.folder), *options),
        *map(str, (threads, effort.hot, effort.cold)),
    ]
