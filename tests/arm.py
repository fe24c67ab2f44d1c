"""What tests share that run ARM64 code: the parts, if they are here, and bundles to run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ARM64_PARTS, Workshop

from edgebuild import runner
from edgebuild.bundles.manifest import FILE, ArtifactRecord, Bundle, Golden, dump_manifest
from edgebuild.bundles.pack import file_digest
from edgebuild.vocabulary.artifact import Artifact
from edgebuild.vocabulary.precision import Precision

NETWORK = "two-inputs"
Test = Callable[..., None]


def needs_arm64(test: Test) -> Test:
    """Marks a test that emulates; it is skipped where the parts were not fetched."""
    why = "ARM64 is not emulated here; `python -m edgebuild.arm64` fetches what it needs"
    found: Test = pytest.mark.skipif(ARM64_PARTS is None, reason=why)(test)
    return pytest.mark.arm64(pytest.mark.usefixtures("users_parts")(found))


def bundle_of(
    workshop: Workshop,
    built: Bundle,
    format_: str,
    precision: Precision,
    folder: Path,
    network: str = NETWORK,
) -> Bundle:
    """A bundle of a network of the zoo; what the manifest says beyond the artifact is another's."""
    artifact = workshop.artifact(network, format_, precision)
    golden = folder / "golden"
    golden.mkdir(parents=True)
    for index, array in enumerate(workshop.subject(network).held_out.inputs()):
        np.save(golden / f"input-{index}.npy", array)
    runner.save(str(golden), workshop.outputs_of(network, artifact))
    shutil.copy(artifact.path, folder)
    manifest = replace(built.manifest, artifact=_record(artifact), threads=1)
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    files = {name.as_posix(): file_digest(folder / name) for name in names}
    manifest = replace(manifest, files=files)
    (folder / FILE).write_bytes(dump_manifest(manifest))
    return Bundle(folder, manifest)


def _record(artifact: Artifact) -> ArtifactRecord:
    return ArtifactRecord(
        file=artifact.path.name,
        sha256=file_digest(artifact.path),
        size=artifact.size,
        format=artifact.format,
        runtime=artifact.runtime,
        inputs=artifact.inputs,
        outputs=artifact.outputs,
        settings=artifact.settings,
        minimum_runtime=artifact.minimum_runtime,
        precisions={},
        golden=Golden("golden", 0.15),
    )
