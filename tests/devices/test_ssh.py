"""Over a real sshd: keys, hosts, dropped links, full disks and late jobs, each in one line."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from devices.boards import Board, kill, ssh_board, until
from devices.trouble import Midway

from edgebuild import catalog
from edgebuild.devices import _link, _patience
from edgebuild.vocabulary.errors import DeviceError, InputError
from edgebuild.vocabulary.units import Seconds

pytestmark = pytest.mark.ssh

SOON = Seconds(60.0)
# Says that it runs, counts its runs, and takes a while.
SLOW = 'echo run >>"$0"; sleep 3; echo result'


def cut(board: Board) -> None:
    """Ends every connection, as a router does that is restarted."""
    kill(board.connections())


def unplug_for_a_while(board: Board) -> None:
    board.unplug()
    threading.Timer(5.0, board.plug_in).start()


DROPS: dict[str, Callable[[Board], None]] = {"cut": cut, "unplugged": unplug_for_a_while}


@pytest.fixture(params=DROPS)
def drop(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Board], None]:
    # An unplugged cable tells nobody; it shows by silence alone.
    monkeypatch.setattr(_link, "SILENCE_LIMIT", 25.0 if request.param == "cut" else 3.0)
    return DROPS[request.param]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_patience, "RETRIES", (0.1,))


# ---- getting in


def test_a_key_that_it_does_not_know_is_refused(pi: Board) -> None:
    (pi.folder / "authorized_keys").write_text((pi.folder / "stranger.pub").read_text())
    with pytest.raises(DeviceError, match=r"it accepts none of your keys\. Try `ssh root@127"):
        pi.device().__enter__()


def test_an_unknown_host_is_not_trusted(pi: Board) -> None:
    (pi.folder / "known_hosts").unlink()
    with pytest.raises(DeviceError, match=r"its host key is not known here\. Compare it and acc"):
        pi.device().__enter__()
    assert not (pi.folder / "known_hosts").exists()


def test_another_machine_at_the_same_address_is_not_trusted(pi: Board) -> None:
    other = (pi.folder / "stranger.pub").read_text()
    (pi.folder / "known_hosts").write_text(f"127.0.0.1 {other}")
    with pytest.raises(DeviceError, match=r"its host key has changed.* `ssh-keygen -R 127.0.0.1`"):
        pi.device().__enter__()


def test_a_port_where_nobody_listens_refuses(pi: Board) -> None:
    with pytest.raises(DeviceError, match=r"ssh://root@127\.0\.0\.1:23: it refuses the connection"):
        catalog.device(f"{pi.url}:23").__enter__()


def test_a_host_that_is_switched_off_does_not_answer(pi: Board) -> None:
    pi.unplug()
    with pytest.raises(DeviceError, match="it does not answer. Is it switched on"):
        pi.device().__enter__()


def test_a_name_from_ssh_config_is_a_host(pi: Board) -> None:
    config = pi.folder / "ssh_config"
    config.write_text(config.read_text() + "Host shelf\n HostName 127.0.0.1\n User root\n")
    with catalog.device("ssh://shelf") as shelf:
        assert shelf.run(["echo", "here"], SOON).stdout == "here\n"


def test_without_ssh_it_says_so(pi: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DeviceError, match="ssh cannot be started here: No such file.*installed"):
        pi.device().__enter__()


@pytest.mark.parametrize("address", ["", "-oProxyCommand=x", "a b", "user@", "host:port"])
def test_what_is_no_address_never_reaches_ssh(address: str) -> None:
    with pytest.raises(InputError, match="is no address: write ssh://user@host:port"):
        catalog.device(f"ssh://{address}")


# ---- copies


def test_a_link_that_drops_mid_copy_goes_on_where_it_stopped(
    pi: Board, drop: Callable[[Board], None], tmp_path: Path
) -> None:
    content = os.urandom(40_000_000)
    (tmp_path / "large").write_bytes(content)
    sizes: list[int] = []

    def in_the_middle() -> None:
        drop(pi)
        sizes.extend(part.stat().st_size for part in pi.disk.rglob("large.part"))

    with catalog.device(pi.url, Midway(15, in_the_middle)) as device:
        there = device.push(tmp_path / "large")
        assert device.run(["wc", "-c", there], SOON).stdout.split()[0] == "40000000"
    assert 0 < sizes[0] < 20_000_000
    assert (pi.disk / Path(there).relative_to(pi.folder / "disk")).read_bytes() == content
    assert list(pi.disk.rglob("*.part")) == []


def test_a_link_that_drops_while_it_copies_back_goes_on_where_it_stopped(
    pi: Board, drop: Callable[[Board], None], tmp_path: Path
) -> None:
    content = os.urandom(40_000_000)
    (pi.disk / "large").write_bytes(content)
    with catalog.device(pi.url, Midway(15, lambda: drop(pi))) as device:
        device.pull(f"{pi.folder}/disk/large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    assert list(tmp_path.glob("*.part")) == []


def test_the_next_run_goes_on_with_a_copy_that_was_given_up(
    pi: Board, tmp_path: Path, impatient: None
) -> None:
    (tmp_path / "large").write_bytes(os.urandom(20_000_000))
    give_up_copying(pi, tmp_path / "large")
    had = next(pi.disk.rglob("large.part")).stat().st_ino
    with pi.device() as device:
        device.pull(device.push(tmp_path / "large"), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "large").read_bytes()
    assert next(pi.disk.rglob("large")).stat().st_ino == had


def test_a_damaged_part_is_found_by_its_sha256_and_sent_anew(
    pi: Board, tmp_path: Path, impatient: None
) -> None:
    (tmp_path / "large").write_bytes(os.urandom(20_000_000))
    give_up_copying(pi, tmp_path / "large")
    with next(pi.disk.rglob("large.part")).open("r+b") as part:
        part.write(b"wrong")
    with pi.device() as device:
        device.pull(device.push(tmp_path / "large"), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "large").read_bytes()


def give_up_copying(board: Board, path: Path) -> None:
    """Leaves a .part of about half the file, and the server running again."""
    stop = Midway(10, board.kill_server)
    with catalog.device(board.url, stop) as device, pytest.raises(DeviceError, match="goes on whe"):
        device.push(path)
    assert next(board.disk.rglob("*.part/*.part")).stat().st_size > 5_000_000
    board.start()


def test_a_disk_that_is_too_small_is_seen_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "large").write_bytes(bytes(20_000_000))
    with ssh_board(tmp_path / "small", monkeypatch, disk="8m") as board, board.device() as device:
        with pytest.raises(DeviceError, match=r"20 MB do not fit into the 8\.\d+ MB that are free"):
            device.push(tmp_path / "large")
        assert list(board.disk.rglob("large*")) == []


def test_a_disk_that_fills_up_meanwhile_is_named_and_left_with_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "large").write_bytes(os.urandom(20_000_000))
    with ssh_board(tmp_path / "small", monkeypatch, disk="30m") as board:
        fill = Midway(3, lambda: (board.disk / "other").write_bytes(bytes(15_000_000)))
        with catalog.device(board.url, fill) as device:
            with pytest.raises(DeviceError, match=r"the disk is full after a part of large"):
                device.push(tmp_path / "large")
            assert list(board.disk.rglob("large*")) == []


# ---- commands


def test_a_job_outlives_its_link(pi: Board, drop: Callable[[Board], None]) -> None:
    with pi.device() as device, ThreadPoolExecutor(1) as pool:
        done = pool.submit(device.run, ["sh", "-c", SLOW, pi.place("runs")], SOON)
        until((pi.disk / "runs").exists)
        drop(pi)
        assert done.result(timeout=60).stdout == "result\n"
    assert (pi.disk / "runs").read_text() == "run\n"


def test_the_result_of_a_job_that_was_given_up_is_still_there(pi: Board, impatient: None) -> None:
    command = ["sh", "-c", SLOW, pi.place("runs")]
    with pi.device() as device, ThreadPoolExecutor(1) as pool:
        done = pool.submit(device.run, command, SOON)
        until((pi.disk / "runs").exists)
        pi.kill_server()
        cut(pi)
        with pytest.raises(DeviceError, match="did not come back"):
            done.result(timeout=60)
    pi.start()
    with pi.device() as device:
        assert device.run(command, SOON).stdout == "result\n"
        assert (pi.disk / "runs").read_text() == "run\n"
        assert device.run(command, SOON).stdout == "result\n"
    assert (pi.disk / "runs").read_text() == "run\nrun\n"


def test_a_job_that_nobody_waits_for_ends_at_its_deadline(pi: Board, impatient: None) -> None:
    command = ["sh", "-c", 'echo run >>"$0"; sleep 77', pi.place("runs")]
    with pi.device() as device, ThreadPoolExecutor(1) as pool:
        done = pool.submit(device.run, command, Seconds(6.0))
        until((pi.disk / "runs").exists)
        pi.kill_server()
        cut(pi)
        assert isinstance(done.exception(timeout=60), DeviceError)
    assert pi.processes("sleep 77") != []
    until(lambda: not [*pi.processes("sleep 77"), *pi.processes("sleep 6 ")], seconds=20)


def test_a_late_job_leaves_nothing_running(pi: Board) -> None:
    family = "sleep 71 & setsid sleep 72 & sh -c 'sleep 73; true' & sleep 74"
    with pi.device() as device, pytest.raises(DeviceError, match="did not end within 2 s"):
        device.run(["sh", "-c", family], Seconds(2.0))
    left = [number for number in (71, 73, 74) if pi.processes(f"sleep {number}")]
    assert left == []


def test_a_job_that_ends_leaves_nothing_running(pi: Board) -> None:
    with pi.device() as device:
        assert device.run(["sh", "-c", "sleep 75 & echo done"], SOON).stdout == "done\n"
    until(lambda: not pi.processes("sleep 75"), seconds=5)
    assert list((pi.disk / "edgebuild-device/jobs").iterdir()) == []
    assert not (pi.disk / "edgebuild-device/lock").is_symlink()


def test_jobs_run_one_after_the_other(pi: Board) -> None:
    log = pi.place("log")
    words = [["sh", "-c", f"echo begin >>{log}; sleep 1; echo end >>{log}", name] for name in "ab"]
    with pi.device() as device, ThreadPoolExecutor(2) as pool:
        assert all(
            done.returncode == 0 for done in pool.map(lambda it: device.run(it, SOON), words)
        )
    assert (pi.disk / "log").read_text().split() == ["begin", "end"] * 2


def test_the_lock_of_a_job_that_died_is_taken_over(pi: Board) -> None:
    with pi.device() as device:
        (pi.disk / "edgebuild-device/lock").symlink_to("999999.another-boot")
        assert device.run(["echo", "here"], SOON).stdout == "here\n"


def test_a_board_that_was_restarted_in_the_middle_has_lost_its_job(pi: Board) -> None:
    command = ["sh", "-c", 'echo run >>"$0"; sleep 78', pi.place("runs")]
    with pi.device() as device, ThreadPoolExecutor(1) as pool:
        done = pool.submit(device.run, command, SOON)
        until((pi.disk / "runs").exists)
        # All but its files is gone, and its number may be another process's by now.
        [job] = (pi.disk / "edgebuild-device/jobs").iterdir()
        process = (job / "process").read_text().partition(".")[0]
        pi.inside("kill", "-9", process)
        (job / "process").write_text("1.another-boot")
        with pytest.raises(DeviceError, match="lost the result of sh. Was it restarted"):
            done.result(timeout=60)


def test_a_board_without_python_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        ssh_board(tmp_path / "bare", monkeypatch, tools="busybox", python="") as board,
        board.device() as device,
        pytest.raises(DeviceError, match="there is no Python on ssh://root@127.0.0.1: install"),
    ):
        device.run(["python", "-c", "print(1)"], SOON)


def test_a_board_without_a_program_that_copies_need_is_named(pi: Board) -> None:
    (pi.folder / "tools/sha256sum").unlink()
    with pytest.raises(DeviceError, match="lacks sha256sum"):
        pi.device().__enter__()
