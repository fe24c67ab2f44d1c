"""This machine runs commands, ends those that take too long and says what it cannot start."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgebuild import catalog
from edgebuild.vocabulary.contracts import Device
from edgebuild.vocabulary.errors import DeviceError
from edgebuild.vocabulary.units import Seconds

SOON = Seconds(30.0)
WRITE_PID_AND_SLEEP = """
import os, sys, time
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(60)
"""


@pytest.fixture
def device() -> Device:
    return catalog.device("local")


def test_output_errors_and_exit_code_pass_through(device: Device) -> None:
    code = "import sys; print('said'); print('wailed', file=sys.stderr); sys.exit(7)"
    done = device.run(["python", "-c", code], SOON)
    assert (done.returncode, done.stdout, done.stderr) == (7, "said\n", "wailed\n")


def test_python_is_the_python_that_runs_this(device: Device) -> None:
    done = device.run(["python", "-c", "import sys; print(sys.executable)"], SOON)
    assert done.stdout.strip() == sys.executable


def test_a_command_that_takes_too_long_is_killed(device: Device, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(DeviceError, match=r"did not end within 1 s"):
        device.run(["python", "-c", WRITE_PID_AND_SLEEP, str(tmp_path / "pid")], Seconds(1.0))
    assert time.monotonic() - started < 20
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_program_that_is_not_there_is_named(device: Device) -> None:
    with pytest.raises(DeviceError, match="no-such-program cannot be started: No such file"):
        device.run(["no-such-program", "--help"], SOON)


def test_a_file_that_is_no_program_is_named(device: Device, tmp_path: Path) -> None:
    file = tmp_path / "plain.txt"
    file.touch(mode=0o644)
    with pytest.raises(DeviceError, match=r"plain\.txt cannot be started: Permission denied"):
        device.run([str(file)], SOON)


def test_a_command_that_is_killed_is_no_success(device: Device) -> None:
    done = device.run(["python", "-c", "import os; os.kill(os.getpid(), 9)"], SOON)
    assert done.returncode == -9


def test_output_that_is_no_text_is_still_read(device: Device) -> None:
    done = device.run(["python", "-c", r"import os; os.write(2, b'bad \xff byte')"], SOON)
    assert done.stderr == "bad \ufffd byte"


def test_words_with_spaces_stay_one_word(device: Device) -> None:
    done = device.run(["python", "-c", "import sys; print(sys.argv[1:])", "a b", "$HOME"], SOON)
    assert done.stdout == "['a b', '$HOME']\n"


def test_nothing_is_copied_to_where_it_is_already(device: Device, tmp_path: Path) -> None:
    assert device.push(tmp_path) == str(tmp_path)


def test_a_folder_is_pulled_with_all_that_is_in_it(device: Device, tmp_path: Path) -> None:
    (tmp_path / "there" / "inner").mkdir(parents=True)
    (tmp_path / "there" / "inner" / "file").write_text("text")
    device.pull(str(tmp_path / "there"), tmp_path / "here")
    assert (tmp_path / "here" / "inner" / "file").read_text() == "text"


def test_a_file_is_pulled_under_its_new_name(device: Device, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("text")
    device.pull(str(tmp_path / "there"), tmp_path / "here")
    assert (tmp_path / "here").read_text() == "text"


def test_leaving_it_ends_what_still_runs(device: Device, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    command = ["python", "-c", WRITE_PID_AND_SLEEP, str(pid)]
    with ThreadPoolExecutor(1) as pool:
        with device as entered:
            done = pool.submit(entered.run, command, SOON)
            while not (pid.exists() and pid.read_text()):
                time.sleep(0.01)
        assert done.result(timeout=20).returncode == -9
