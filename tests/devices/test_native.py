"""Over ssh and adb, a board without Python checks and measures a bundle all the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import small_build
from conftest import Workshop
from devices.boards import Board, adb_board, ssh_board

from edgebuild.bundles.bench import Effort, bench
from edgebuild.bundles.manifest import Bundle
from edgebuild.bundles.native import pack_native, verify_native
from edgebuild.vocabulary.errors import DeviceError

BOARDS = [
    pytest.param((ssh_board, "busybox"), marks=pytest.mark.ssh),
    pytest.param((adb_board, "toybox"), marks=pytest.mark.adb),
]


@pytest.fixture(params=BOARDS)
def board(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Board]:
    make, tools = request.param
    with make(tmp_path / "board", monkeypatch, tools=tools, python="") as made:
        yield made


@pytest.fixture(scope="module")
def bundle(workshop: Workshop) -> Bundle:
    return small_build.bundle(workshop.folder)


def test_a_bundle_runs_without_python(board: Board, bundle: Bundle, tmp_path: Path) -> None:
    with board.device() as device:
        with pytest.raises(DeviceError, match="there is no Python"):
            bench(bundle, "board", device, Effort(0.1, 50))
        found = bench(bundle, "board", device, Effort(0.1, 50, threads=1, native=True))
        assert found.measurement is not None
        assert found.measurement.threads == 1
        assert len(found.measurement.latencies) >= 50
        folder = pack_native(bundle, tmp_path / "native", "x86_64")
        assert verify_native(folder, device).relative_error == 0.0
