"""Has a bundle's model run on for minutes on a device, to see what heat leaves of its speed."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from edgebuild import runner
from edgebuild.bundles.manifest import FILE, Bundle
from edgebuild.vocabulary.contracts import Device
from edgebuild.vocabulary.errors import DeviceError
from edgebuild.vocabulary.measurement import Sustained
from edgebuild.vocabulary.units import Seconds

# It is read as a file, not imported: it wants its loader beside it.
SCRIPT = Path(runner.__file__).with_name("sustained.py")
MARGIN = Seconds(600.0)


def run_on(bundle: Bundle, device: Device, seconds: Seconds, threads: int | None) -> Sustained:
    """Runs it for so long in one process, on as many threads as it says itself unless given.

    Raises:
        DeviceError: the runtime is missing, cannot load the model, or takes too long.
    """
    manifest = f"{device.push(bundle.path.absolute())}/{FILE}"
    with tempfile.TemporaryDirectory(prefix="edgebuild-") as scratch:
        for file in (SCRIPT, Path(runner.__file__)):
            shutil.copyfile(file, Path(scratch) / file.name)
        script = f"{device.push(Path(scratch))}/{SCRIPT.name}"
        words = ["python", script, manifest, str(seconds), str(threads or 0)]
        done = device.run(words, Seconds(seconds + MARGIN))
    if done.returncode != 0:
        raise DeviceError(f"{bundle.path}: the long run failed on {device.name}: {done.reason}")
    try:
        return TypeAdapter(Sustained).validate_json(done.stdout)
    except ValidationError:
        raise DeviceError(f"{device.name}: what it printed is no sustained run") from None
