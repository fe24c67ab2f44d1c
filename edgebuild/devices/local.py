"""This machine: every command is a process of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from edgebuild.cache import this_machine
from edgebuild.vocabulary.contracts import Completed, Progress
from edgebuild.vocabulary.errors import DeviceError
from edgebuild.vocabulary.units import Seconds

MOMENT = Seconds(30.0)


class Local:
    """Runs commands here; nothing is copied, because everything is here already."""

    name = "host"
    is_here = True
    keeps_time = True

    def __init__(self, address: str = "", progress: Progress | None = None) -> None:
        # The same machine whatever the address; and nothing here takes long enough to watch.
        self._running: set[subprocess.Popen[str]] = set()

    @property
    def identity(self) -> str:
        return this_machine()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends what still runs, as after Ctrl-C while several commands ran side by side."""
        for process in list(self._running):
            _end(process)

    def push(self, path: Path) -> str:
        return str(path)

    def run(self, command: Sequence[str], deadline: Seconds) -> Completed:
        program, *arguments = command
        program = sys.executable if program == "python" else program
        try:
            process = subprocess.Popen(
                [program, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                # A group of its own, so that what it starts ends with it.
                start_new_session=True,
            )
        except OSError as error:
            raise DeviceError(f"{program} cannot be started: {error.strerror}") from None
        self._running.add(process)
        try:
            stdout, stderr = process.communicate(timeout=deadline)
        except subprocess.TimeoutExpired:
            raise DeviceError(
                f"{Path(program).name} did not end within {deadline:.0f} s on this machine"
            ) from None
        finally:
            _end(process)
            process.wait()
            self._running.discard(process)
        return Completed(process.returncode, stdout, stderr)

    def glance(self, command: Sequence[str]) -> Completed:
        return self.run(command, MOMENT)

    def pull(self, remote: str, path: Path) -> None:
        if not Path(remote).exists():
            raise DeviceError(f"there is no {remote} on this machine")
        if Path(remote).is_dir():
            shutil.copytree(remote, path, dirs_exist_ok=True)
        else:
            shutil.copyfile(remote, path)


def _end(process: subprocess.Popen[str]) -> None:
    """Also what the command has started and left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
