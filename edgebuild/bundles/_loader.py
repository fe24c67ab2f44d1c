"""Runs the loader that also travels in bundles on a bundle, wherever that is."""

from __future__ import annotations

from pathlib import Path

from edgebuild import runner
from edgebuild.bundles.manifest import FILE, Bundle
from edgebuild.vocabulary.contracts import Completed, Device
from edgebuild.vocabulary.units import Seconds


def run_loader(bundle: Bundle, device: Device, *words: str, deadline: Seconds) -> Completed:
    """Our own loader, not the bundle's: what somebody else packed is data here, not code."""
    loader = device.push(Path(runner.__file__))
    manifest = f"{device.push(bundle.path.absolute())}/{FILE}"
    return device.run(["python", loader, "--manifest", manifest, *words], deadline)
