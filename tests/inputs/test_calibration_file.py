"""A probe's file is written beside a profile and read back, and what is no probe is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgebuild.inputs.calibration_file import write_calibrated
from edgebuild.inputs.target_file import load_target, profile_text
from edgebuild.vocabulary.artifact import KernelWork
from edgebuild.vocabulary.calibration import (
    Calibration,
    KernelSample,
    Load,
    NetworkSample,
    ProbedRuntime,
)
from edgebuild.vocabulary.errors import InvalidTarget
from edgebuild.vocabulary.units import Bytes, Seconds

BASE = "robot-raspberry-pi-5"
WORK = KernelWork("linear", "fp32", 6, Bytes(24), Bytes(8), Bytes(12), 2, 3)
KERNEL = KernelSample("Fully Connected", WORK, Seconds(1e-6), Seconds(2e-6))
NETWORK = NetworkSample("tiny fp32", (KERNEL,), Load(2, Bytes(20)), Seconds(5e-6))


def calibration(threads: int = 4) -> Calibration:
    runtime = ProbedRuntime("litert", "ai-edge-litert 2.3.0", threads, (NETWORK,))
    return Calibration("ssh://pi@shelf", "2026-11-24T12:00:00+00:00", (runtime,))


def written(folder: Path, found: Calibration | None = None) -> Path:
    write_calibrated(profile_text(BASE), folder / "shelf.toml", found or calibration())
    return folder / "shelf.toml"


def test_a_calibrated_profile_is_its_base_with_the_probe(tmp_path: Path) -> None:
    target, base = load_target(written(tmp_path)), load_target(BASE)
    assert target.calibration == calibration()
    assert (target.memory, target.runtimes, target.budget) == (
        base.memory,
        base.runtimes,
        base.budget,
    )


def test_a_profile_that_is_probed_again_has_the_new_probe_alone(tmp_path: Path) -> None:
    first = written(tmp_path)
    write_calibrated(profile_text(first), tmp_path / "again.toml", calibration())
    assert (tmp_path / "again.toml").read_text().count("[calibration]") == 1
    assert load_target(tmp_path / "again.toml").calibration == calibration()


def test_a_probe_on_other_threads_is_refused_with_the_line(tmp_path: Path) -> None:
    file = written(tmp_path, calibration(threads=1))
    line = len(file.read_text().splitlines())
    message = rf"shelf\.toml:{line}: calibration\.file: litert was probed on 1 threads and has 4"
    with pytest.raises(InvalidTarget, match=message):
        load_target(file)


BROKEN = {
    "a missing file": (None, "cannot be read: No such file"),
    "no JSON": ("{\n not", "shelf.probes.json:2: is not JSON"),
    "another object": ("{}", "device: field required"),
    "no networks": ({"runtimes": []}, "holds no network of a probe"),
    "a negative time": ({"hot": -1.0}, r"are no times of 'Fully Connected'"),
    "a time that is a text": ({"hot": "soon"}, r"hot: input should be a valid number"),
    "no time at all": ({"seconds": 0.0}, r"0.0 s is no time of a network"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_holds_no_probe_is_refused_with_line_and_reason(
    name: str, tmp_path: Path
) -> None:
    change, reason = BROKEN[name]
    file = written(tmp_path)
    probes = tmp_path / "shelf.probes.json"
    if change is None:
        probes.unlink()
    elif isinstance(change, str):
        probes.write_text(change)
    else:
        tables: Any = json.loads(probes.read_text())
        network = tables["runtimes"][0]["networks"][0]
        for key, value in change.items():
            place = {"runtimes": tables, "seconds": network}.get(key, network["kernels"][0])
            place[key] = value
        probes.write_text(json.dumps(tables))
    line = len(file.read_text().splitlines())
    with pytest.raises(InvalidTarget, match=rf"shelf\.toml:{line}: calibration\.file: .*{reason}"):
        load_target(file)


def test_an_unknown_key_beside_the_file_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path)
    file.write_text(file.read_text() + 'fiel = "x"\n')
    with pytest.raises(InvalidTarget, match="calibration.fiel: unknown key. Did you mean 'file'"):
        load_target(file)
