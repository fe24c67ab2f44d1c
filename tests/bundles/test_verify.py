"""Verifying finds every file that is not as it was built, and outputs that are not either."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from edgebuild import catalog
from edgebuild.bundles.bench import Effort, bench
from edgebuild.bundles.manifest import FILE, Bundle, dump_manifest, load_bundle
from edgebuild.bundles.pack import file_digest
from edgebuild.bundles.verify import verify
from edgebuild.vocabulary.contracts import Completed, Device
from edgebuild.vocabulary.errors import DeviceError, InvalidBundle
from edgebuild.vocabulary.units import Seconds


@dataclass
class FakeDevice:
    """Answers every command alike, and remembers it."""

    answer: Completed
    name: str = "a board"
    is_here: bool = False
    keeps_time: bool = True
    commands: tuple[Sequence[str], ...] = ()

    def push(self, path: Path) -> str:
        return f"/there/{path.name}"

    def run(self, command: Sequence[str], deadline: Seconds) -> Completed:
        self.commands += (command,)
        return self.answer


def answering(answer: Completed) -> Device:
    return FakeDevice(answer)  # type: ignore[return-value]


@pytest.fixture
def device() -> Device:
    return catalog.device("local")


@pytest.fixture
def unused() -> Device:
    """Nothing may run on it."""
    return answering(Completed(99, "", "it ran"))


def test_an_untouched_bundle_is_intact(bundle: Bundle, device: Device) -> None:
    found = verify(bundle, device)
    assert found.files == len(bundle.manifest.files)
    assert found.relative_error <= found.limit == bundle.manifest.artifact.golden.limit
    assert found.runtime.startswith("onnxruntime ")


def test_what_python_leaves_behind_is_no_added_file(bundle: Bundle, unused: Device) -> None:
    (bundle.path / "__pycache__").mkdir()
    (bundle.path / "__pycache__" / "run.cpython-311.pyc").touch()
    with pytest.raises(DeviceError, match="it ran"):
        verify(bundle, unused)


# ---- files


def test_every_changed_file_is_found(bundle: Bundle, unused: Device) -> None:
    for name in bundle.manifest.files:
        file = bundle.path / name
        content = file.read_bytes()
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        with pytest.raises(InvalidBundle, match=f"{name} was changed since it was built"):
            verify(bundle, unused)
        file.write_bytes(content)


def test_every_missing_file_is_found(bundle: Bundle, unused: Device) -> None:
    for name in bundle.manifest.files:
        file = bundle.path / name
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(InvalidBundle, match=f"{name} is missing: build it again"):
            verify(bundle, unused)
        file.write_bytes(content)


@pytest.mark.parametrize("name", ["added.txt", "golden/input-9.npy", ".hidden"])
def test_an_added_file_is_found(name: str, bundle: Bundle, unused: Device) -> None:
    (bundle.path / name).touch()
    with pytest.raises(InvalidBundle, match=f"{name} is not part of the bundle"):
        verify(bundle, unused)


def test_a_folder_in_a_files_place_is_found(bundle: Bundle, unused: Device) -> None:
    (bundle.path / "NOTICE").unlink()
    (bundle.path / "NOTICE").mkdir()
    with pytest.raises(InvalidBundle, match="NOTICE is missing"):
        verify(bundle, unused)


# ---- outputs


def with_outputs(bundle: Bundle, outputs: np.ndarray) -> Bundle:
    """The bundle with other golden outputs, as if it had been built with them."""
    name = "golden/output-0.npy"
    np.save(bundle.path / name, outputs)
    files = {**bundle.manifest.files, name: file_digest(bundle.path / name)}
    (bundle.path / FILE).write_bytes(dump_manifest(replace(bundle.manifest, files=files)))
    return load_bundle(bundle.path)


def test_other_outputs_are_found(bundle: Bundle, device: Device) -> None:
    outputs = np.load(bundle.path / "golden" / "output-0.npy")
    outputs[-1] += 2 * bundle.manifest.artifact.golden.limit * np.abs(outputs[-1]).max()
    limit = bundle.manifest.artifact.golden.limit
    with pytest.raises(
        InvalidBundle, match=rf"the golden outputs differ by 0\.\d+ on host .* {limit:g} is allowed"
    ):
        verify(with_outputs(bundle, outputs), device)


def test_outputs_that_are_no_numbers_are_found(bundle: Bundle, device: Device) -> None:
    outputs = np.load(bundle.path / "golden" / "output-0.npy")
    with pytest.raises(InvalidBundle, match="the golden outputs differ by inf"):
        verify(with_outputs(bundle, np.full_like(outputs, np.nan)), device)


def test_a_bundle_is_verified_where_it_stands(built: Bundle) -> None:
    said = {"ok": True, "relative_error": 0.0, "limit": 0.05, "runtime": "a runtime 1.0"}
    device = FakeDevice(Completed(0, json.dumps(said), ""))
    found = verify(built, device)  # type: ignore[arg-type]
    assert found.runtime == "a runtime 1.0"
    assert device.commands == (
        [
            "python",
            "/there/runner.py",
            "--manifest",
            f"/there/{built.path.name}/manifest.json",
            "check",
        ],
    )


# ---- trouble with the device


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Completed(4, "", "the runtime is missing: install it\n"), "the runtime is missing"),
        (Completed(1, "", "Traceback …\nRuntimeError: bad kernel\n"), "RuntimeError: bad kernel"),
        (Completed(-9, "", ""), "exit code -9"),
    ],
)
def test_a_device_that_cannot_run_it_is_no_damage(
    answer: Completed, reason: str, built: Bundle
) -> None:
    with pytest.raises(DeviceError, match=f"the check failed on a board: {reason}"):
        verify(built, answering(answer))
    with pytest.raises(DeviceError, match=f"bench failed on a board: {reason}"):
        bench(built, "board", answering(answer), Effort(seconds=1.0, count=1))


# ---- measured again


def test_a_bundle_is_measured_by_its_own_loader(bundle: Bundle, device: Device) -> None:
    found = bench(bundle, "local", device, Effort(seconds=0.0, count=20, threads=1)).measurement
    assert found is not None
    assert len(found.latencies) == 20
    assert found.threads == 1
    assert found.peak_memory > 0


def test_a_copy_elsewhere_is_the_same_bundle(
    bundle: Bundle, device: Device, tmp_path: Path
) -> None:
    shutil.move(bundle.path, tmp_path / "else where")
    assert verify(load_bundle(tmp_path / "else where"), device)
