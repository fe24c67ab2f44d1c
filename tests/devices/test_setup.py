"""A device with a bare Python gets what bundles need, and then runs them; no internet there."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
import small_build
from conftest import Workshop
from devices.boards import Board, ssh_board

from edgebuild.bundles.bench import Effort, bench
from edgebuild.bundles.manifest import Bundle
from edgebuild.bundles.setup import equipment, set_up
from edgebuild.catalog import device
from edgebuild.vocabulary.errors import DeviceError, InputError
from edgebuild.vocabulary.silence import Silence

pytestmark = pytest.mark.ssh

# Without the packages that are installed here: only what PYTHONPATH names.
BARE = f"{sys.base_prefix}/bin/python3.11 -S"


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    with ssh_board(tmp_path / "pi", monkeypatch, disk="600m", python=BARE) as board:
        yield board


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for pip to find numpy and onnxruntime as they are installed here, and no other."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for package in ("numpy", "onnxruntime"):
        found = distribution(package)
        name = f"{package}-{found.version}-cp311-cp311-manylinux_2_17_x86_64.whl"
        with zipfile.ZipFile(folder / name, "w") as wheel:
            for file in found.files or ():
                if ".." not in file.parts and "__pycache__" not in file.parts:
                    wheel.write(str(file.locate()), str(file))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture(scope="module")
def bundle(workshop: Workshop) -> Bundle:
    return small_build.bundle(workshop.folder)


@pytest.mark.slow
def test_what_is_missing_is_installed_and_a_bundle_runs(
    bare: Board, wheels: Path, bundle: Bundle
) -> None:
    with bare.device() as pi:
        with pytest.raises(DeviceError, match="numpy.*`edgebuild device setup` installs it"):
            bench(bundle, "pi", pi, Effort(0.1, 50))
        assert equipment(pi).lacks(["onnxruntime", "litert"]) == [
            *("numpy", "onnxruntime", "ai-edge-litert")
        ]
        found = set_up(pi, ["onnxruntime"], Silence())
        assert found.packages["onnxruntime"] == distribution("onnxruntime").version
        assert bench(bundle, "pi", pi, Effort(0.1, 50)).measurement is not None
        # Again there is nothing to do, and nothing to fetch.
        for wheel in wheels.iterdir():
            wheel.unlink()
        assert set_up(pi, ["onnxruntime"], Silence()) == found


def test_a_runtime_without_a_wheel_for_it_is_named(
    bare: Board, wheels: Path, tmp_path: Path
) -> None:
    with (
        bare.device() as pi,
        pytest.raises(DeviceError, match=r"no wheels of .*ai-edge-litert for"),
    ):
        set_up(pi, ["litert"], Silence())
    assert list(bare.disk.rglob("site")) == []


def test_this_machine_is_left_alone() -> None:
    with device("local") as here, pytest.raises(InputError, match="this machine: pip installs"):
        set_up(here, ["onnxruntime"], Silence())
