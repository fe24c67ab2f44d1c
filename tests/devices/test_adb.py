"""Over a real adbd: killed in a shell or a copy, restarted, its disk full; rc 0 proves nothing."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from devices.boards import Board, adb_board, until
from devices.trouble import Midway

from edgebuild import catalog
from edgebuild.devices import _link, _patience
from edgebuild.devices.adb import AdbLink
from edgebuild.vocabulary.errors import DeviceError, InputError
from edgebuild.vocabulary.units import Seconds

pytestmark = pytest.mark.adb

SOON = Seconds(60.0)
SLOW = 'echo run >>"$0"; sleep 3; echo result'


def restart(board: Board) -> None:
    board.kill_server()
    threading.Timer(2.0, board.start).start()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_patience, "RETRIES", (0.1,))


def test_half_an_answer_is_not_believed(phone: Board) -> None:
    link = AdbLink("127.0.0.1:5555")
    link.connect()
    script = f"echo half; : >{phone.place('begun')}; sleep 30; echo whole"
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(_link.ask, link, script)
        until((phone.disk / "begun").exists)
        phone.kill_server()
        with pytest.raises(_link.LinkDropped, match=r"the link to adb://127.0.0.1:5555 dropped"):
            answer.result(timeout=30)


def test_a_job_outlives_a_restarted_adbd(phone: Board) -> None:
    with phone.device() as device, ThreadPoolExecutor(1) as pool:
        done = pool.submit(device.run, ["sh", "-c", SLOW, phone.place("runs")], SOON)
        until((phone.disk / "runs").exists)
        restart(phone)
        assert done.result(timeout=60).stdout == "result\n"
    assert (phone.disk / "runs").read_text() == "run\n"


def test_a_device_that_stays_away_is_given_up(phone: Board, impatient: None) -> None:
    with phone.device() as device, ThreadPoolExecutor(1) as pool:
        done = pool.submit(device.run, ["sh", "-c", SLOW, phone.place("runs")], SOON)
        until((phone.disk / "runs").exists)
        phone.kill_server()
        with pytest.raises(DeviceError, match="and did not come back"):
            done.result(timeout=60)


def test_a_copy_goes_on_after_adbd_was_killed_and_restarted(phone: Board, tmp_path: Path) -> None:
    content = os.urandom(60_000_000)
    (tmp_path / "large").write_bytes(content)
    sizes: list[int] = []

    def in_the_middle() -> None:
        restart(phone)
        sizes.extend(part.stat().st_size for part in phone.disk.rglob("large.part"))

    with catalog.device(phone.url, Midway(20, in_the_middle)) as device:
        there = device.push(tmp_path / "large")
    assert 0 < sizes[0] < 60_000_000
    assert (phone.disk / Path(there).relative_to(phone.folder / "disk")).read_bytes() == content
    assert list(phone.disk.rglob("*.part")) == []


def test_a_disk_that_fills_up_is_named_and_left_with_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "large").write_bytes(os.urandom(20_000_000))
    with adb_board(tmp_path / "small", monkeypatch, disk="30m") as board:
        fill = Midway(3, lambda: (board.disk / "other").write_bytes(bytes(15_000_000)))
        with catalog.device(board.url, fill) as device:
            with pytest.raises(DeviceError, match=r"the disk is full after a part of large"):
                device.push(tmp_path / "large")
            assert list(board.disk.rglob("large*")) == []


def test_a_device_without_python_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        adb_board(tmp_path / "bare", monkeypatch, tools="toybox", python="") as board,
        board.device() as device,
        pytest.raises(DeviceError, match="there is no Python on adb://127.0.0.1:5555"),
    ):
        device.run(["python", "-c", "print(1)"], SOON)


def test_a_serial_that_is_not_plugged_in_is_named(phone: Board) -> None:
    with pytest.raises(DeviceError, match="adb://XYZ1: no such device.*Does `adb devices` list"):
        catalog.device("adb://XYZ1").__enter__()


def test_an_address_where_no_adbd_listens_is_named(phone: Board) -> None:
    with pytest.raises(DeviceError, match="Does `adb connect 127.0.0.1:5556` work"):
        catalog.device("adb://127.0.0.1:5556").__enter__()


def test_without_adb_it_says_so(phone: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        with pytest.raises(DeviceError, match="adb cannot be started here"):
            catalog.device(phone.url).__enter__()


@pytest.mark.parametrize("address", ["", "-s", "two words"])
def test_what_is_no_serial_never_reaches_adb(address: str) -> None:
    with pytest.raises(InputError, match="is no address: write adb://SERIAL"):
        catalog.device(f"adb://{address}")
