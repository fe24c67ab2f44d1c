"""Has a shell at the other end of a link run a script, and believes only a whole answer."""

from __future__ import annotations

import contextlib
import secrets
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from edgebuild.vocabulary.errors import DeviceError

CHUNK = 1 << 16
# A link on which nothing has moved for so many seconds is taken for dead.
SILENCE_LIMIT = 30.0


def script(name: str) -> str:
    """The text of a .sh file, as short as it can be: some transports take no long commands."""
    text = (Path(__file__).parent / f"_{name}.sh").read_text()
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("#"))


class Link(Protocol):
    """All that a transport has to know: how to reach a shell there, and what failures mean."""

    name: str

    def connect(self) -> None:
        """Called before the first call, and again after every drop."""
        ...

    def command(self, text: str) -> list[str]:
        """The command here that has a shell there run a text; bytes pass unchanged."""
        ...

    def trouble(self, complaint: str) -> DeviceError:
        """What the transport's last words mean; LinkDropped where another try may help."""
        ...


class LinkDropped(DeviceError):
    """The connection ended or fell silent; the device may still be at work."""


@dataclass(frozen=True)
class Answer:
    """What a script printed, and its exit code."""

    code: int
    output: bytes

    @property
    def text(self) -> str:
        return self.output.decode(errors="replace").strip()


def ask(link: Link, script: str, *words: str, within: float | None = None) -> Answer:
    """Runs a script there, with the words as its $1, $2 ...

    Raises:
        LinkDropped: no whole answer came.
        DeviceError: the link cannot be used at all.
    """
    with _call(link, script, words, within or SILENCE_LIMIT) as call:
        return call.answer()


def send(
    link: Link,
    script: str,
    *words: str,
    source: IO[bytes],
    moved: Callable[[int], None],
    within: float,
) -> Answer:
    """Runs a script that reads the rest of a file, and may then take so long to look at it."""
    with _call(link, script, words, SILENCE_LIMIT) as call:
        # Where it breaks, the script or the transport has said why.
        with contextlib.suppress(BrokenPipeError):
            while chunk := source.read(CHUNK):
                call.input.write(chunk)
                call.expect_more(SILENCE_LIMIT)
                moved(len(chunk))
        call.expect_more(within)
        return call.answer()


def receive(
    link: Link, script: str, *words: str, sink: IO[bytes], size: int, moved: Callable[[int], None]
) -> Answer:
    """Runs a script whose first `size` bytes of output belong into a file."""
    with _call(link, script, words, SILENCE_LIMIT) as call:
        left = size
        while left and (chunk := call.output.read(min(left, CHUNK))):
            sink.write(chunk)
            left -= len(chunk)
            call.expect_more(SILENCE_LIMIT)
            moved(len(chunk))
        return call.answer()


@contextmanager
def _call(link: Link, script: str, words: tuple[str, ...], within: float) -> Iterator[_Call]:
    # Transports report success for calls that were cut off; only this mark ends an answer.
    mark = f"edgebuild-{secrets.token_hex(8)}"
    command = link.command(_text(script, words, mark))
    with tempfile.TemporaryFile() as complaint:
        try:
            process = subprocess.Popen(
                command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaint
            )
        except OSError as error:
            reason = f"{command[0]} cannot be started here: {error.strerror}"
            raise DeviceError(f"{link.name}: {reason}. Is it installed?") from None
        call = _Call(link, mark, process, complaint, time.monotonic() + within)
        watch = threading.Thread(target=call.end_when_silent, daemon=True)
        watch.start()
        try:
            yield call
        finally:
            call.end()
            watch.join()


def _text(script: str, words: tuple[str, ...], mark: str) -> str:
    """One line for whatever shell the user has there: sh runs the script, then prints the mark."""
    marked = f"(\n{script}\n)\nprintf '\\n%s %d\\n' {mark} $?"
    return shlex.join(["exec", "sh", "-c", marked, "edgebuild", *words])


class _Call:
    """One run of the transport's program; ended when nothing has come for too long."""

    def __init__(
        self,
        link: Link,
        mark: str,
        process: subprocess.Popen[bytes],
        complaint: IO[bytes],
        patience_ends: float,
    ) -> None:
        assert process.stdin is not None and process.stdout is not None  # noqa: PT018
        self.input, self.output = process.stdin, process.stdout
        self._link, self._mark = link, mark
        self._process, self._complaint = process, complaint
        self._patience_ends = patience_ends
        self._is_over = threading.Event()
        self._fell_silent = False

    def expect_more(self, within: float) -> None:
        """Something has moved; the next thing must within so many seconds."""
        self._patience_ends = time.monotonic() + within

    def end_when_silent(self) -> None:
        while not self._is_over.wait(max(self._patience_ends - time.monotonic(), 0.01)):
            if time.monotonic() >= self._patience_ends:
                self._fell_silent = True
                self._process.kill()
                return

    def answer(self) -> Answer:
        """The rest of the output, once it is known to be whole."""
        with contextlib.suppress(BrokenPipeError):
            self.input.close()
        rest = self.output.read()
        output, found, code = rest.rpartition(f"\n{self._mark} ".encode())
        if found and code.strip().isdigit():
            return Answer(int(code), output)
        self._process.wait()
        if self._fell_silent:
            raise LinkDropped(f"{self._link.name} has fallen silent")
        self._complaint.seek(0)
        raise self._link.trouble(self._complaint.read().decode(errors="replace").strip())

    def end(self) -> None:
        self._is_over.set()
        self._process.kill()
        self._process.wait()
        for stream in (self.input, self.output):
            with contextlib.suppress(OSError):
                stream.close()
