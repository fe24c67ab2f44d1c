"""Every transport copies, runs and ends commands alike, whatever shell and tools are there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
from devices.boards import Board, adb_board, ssh_board, until

from edgebuild import catalog
from edgebuild.vocabulary.contracts import Device
from edgebuild.vocabulary.errors import DeviceError
from edgebuild.vocabulary.units import Seconds

SOON = Seconds(60.0)
BOARDS = {"ssh": ssh_board, "adb": adb_board}
HERE = ["local", "twin:4GB"]
WITH_LINK = [
    pytest.param(f"{kind}-{tools}", marks=getattr(pytest.mark, kind))
    for kind, tools in (
        *(("ssh", "coreutils"), ("ssh", "busybox"), ("ssh", "toybox")),
        *(("adb", "coreutils"), ("adb", "busybox"), ("adb", "toybox")),
    )
]
WRITE_PID_AND_SLEEP = 'echo $$ >"$0.part"; mv "$0.part" "$0"; sleep 61; true'


@pytest.fixture(scope="module", params=[*HERE, *WITH_LINK])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    kind, _, tools = request.param.partition("-")
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("boards") / "board"
        board = BOARDS[kind](folder, patch, tools=tools) if tools else nullcontext()
        with board as made:
            yield made.url if isinstance(made, Board) else request.param


@pytest.fixture
def device(url: str) -> Iterator[Device]:
    with catalog.device(url) as entered:
        yield entered


def test_a_file_arrives_whole_and_keeps_its_name(device: Device, tmp_path: Path) -> None:
    (tmp_path / "three words.bin").write_bytes(bytes(range(256)) * 5000)
    there = device.push(tmp_path / "three words.bin")
    assert there.endswith("/three words.bin")
    device.pull(there, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == bytes(range(256)) * 5000


def test_a_folder_arrives_with_all_that_is_in_it(device: Device, tmp_path: Path) -> None:
    files = {"one": b"1", "inner/empty": b"", "inner/it's $HOME": b"\r\n\0\xff", "inner/ü": b"u"}
    for name, content in files.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    device.pull(device.push(tmp_path / "folder"), tmp_path / "back")
    found = {name: (tmp_path / "back" / name).read_bytes() for name in files}
    assert found == files


def test_a_program_can_be_run_where_it_arrives(device: Device, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    program = tmp_path / "folder" / "program"
    program.write_text("#!/bin/sh\necho it runs\n")
    program.chmod(0o755)
    there = device.push(tmp_path / "folder")
    assert device.run([f"{there}/program"], SOON).stdout == "it runs\n"


def test_a_glance_waits_for_nobody(device: Device, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(device.run, ["sleep", "2"], SOON)
        assert device.glance(["sh", "-c", "echo $((6 * 7))"]).stdout.strip() == "42"
        assert not long.done()
        assert long.result().returncode == 0
    assert device.glance(["sh", "-c", "exit 3"]).returncode == 3


def test_what_has_changed_is_pushed_again(device: Device, tmp_path: Path) -> None:
    said = []
    for text in ("first", "second", "second"):
        (tmp_path / "file").write_text(text)
        there = device.push(tmp_path / "file")
        said.append(device.run(["cat", there], SOON).stdout)
    assert said == ["first", "second", "second"]


def test_what_is_not_there_cannot_be_pulled(device: Device, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="there is no /no/such/file"):
        device.pull("/no/such/file", tmp_path / "back")


def test_output_errors_and_exit_code_pass_through(device: Device) -> None:
    done = device.run(["sh", "-c", "echo said; echo wailed >&2; exit 7"], SOON)
    assert (done.returncode, done.stdout, done.stderr) == (7, "said\n", "wailed\n")


def test_words_stay_as_they_are(device: Device) -> None:
    words = ["a b", "$HOME", "it's", '"', "", "two\nlines", "\\n", "*", "ü"]
    done = device.run(["python", "-c", "import sys; print(ascii(sys.argv[1:]))", *words], SOON)
    assert done.stdout.strip() == ascii(words)


def test_a_program_that_is_not_there_is_named(device: Device) -> None:
    with pytest.raises(DeviceError, match=r"no-such-program cannot be started"):
        device.run(["no-such-program", "--help"], SOON)


def test_a_command_that_is_killed_is_no_success(device: Device) -> None:
    assert device.run(["sh", "-c", "kill -9 $$"], SOON).returncode == -9


def test_the_same_command_is_run_again_each_time(device: Device, tmp_path: Path) -> None:
    for _ in range(2):
        device.run(["sh", "-c", f"echo once >>{tmp_path}/runs"], SOON)
    assert (tmp_path / "runs").read_text() == "once\nonce\n"


def test_a_command_that_takes_too_long_is_ended(device: Device, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"did not end within 1 s"):
        device.run(["sh", "-c", WRITE_PID_AND_SLEEP, f"{tmp_path}/pid"], Seconds(1.0))
    assert not lives(device, tmp_path / "pid")


def test_leaving_it_ends_what_still_runs(url: str, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    command = ["sh", "-c", WRITE_PID_AND_SLEEP, str(pid)]
    begun = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        with catalog.device(url) as device:
            done = pool.submit(device.run, command, SOON)
            until(pid.exists)
        ended = done.exception(timeout=40) or done.result().returncode
        assert ended != 0
    assert time.monotonic() - begun < 40
    with catalog.device(url) as device:
        assert not lives(device, pid)


def test_its_name_tells_it_from_others(device: Device) -> None:
    assert device.name


def lives(device: Device, pid: Path) -> bool:
    return device.run(["kill", "-0", pid.read_text().strip()], SOON).returncode == 0
