"""A device behind a link: copies that resume, jobs that outlive a dropped connection."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self, TypeVar

from edgebuild import cache
from edgebuild.devices._link import (
    SILENCE_LIMIT,
    Answer,
    Link,
    LinkDropped,
    ask,
    receive,
    send,
)
from edgebuild.vocabulary.contracts import Completed, Progress, Step
from edgebuild.vocabulary.errors import DeviceError
from edgebuild.vocabulary.units import Seconds, format_size

# Pauses between attempts to reach a device again that was there before.
RETRIES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0)
BLOCK = 1 << 16
# Even a slow board reads and hashes so many bytes a second.
SLOWEST_HASH = 5e6
# What one call may name; no system takes an endless command line.
FILES_A_CALL = 50
# The scripts are POSIX sh; these are the programs beside it that they need.
PROGRAMS = "cat dd df find head kill ln mkdir mv printf readlink rm setsid sha256sum sleep tail wc"

Result = TypeVar("Result")


def script(name: str) -> str:
    """The text of a .sh file, as short as it can be: some transports take no long commands."""
    text = (Path(__file__).parent / f"_{name}.sh").read_text()
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("#"))


ENTER = """
root=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/edgebuild-device
[ -w /data/local/tmp ] && root=/data/local/tmp/edgebuild-device
for program in $1; do
    command -v "$program" >/dev/null || { echo "lacks $program"; exit; }
done
mkdir -p "$root/files" "$root/jobs" || exit
find "$root/files" -mindepth 1 -maxdepth 1 -mtime +7 -exec rm -rf {} + 2>/dev/null
find "$root/jobs" -mindepth 2 -maxdepth 2 -name result -mmin +60 2>/dev/null |
    while read -r result; do rm -rf "${result%/*}"; done
echo "is $root"
"""
STATE = """
folder=$1
shift
[ -d "$folder" ] && { touch "$folder"; echo there; exit; }
mkdir -p "$folder.part" || exit
set -- "$(df -Pk "$folder.part" | tail -n 1)" "$@"
echo "$1"
shift
for file; do
    if [ -f "$folder.part/$file" ]; then echo whole
    elif [ -f "$folder.part/$file.part" ]; then wc -c <"$folder.part/$file.part"
    else echo 0; fi
done
"""
PUBLISH = '[ -d "$1" ] || mv "$1.part" "$1"'
LIST = """
cd "$1" 2>/dev/null && set -- . || { cd "${1%/*}" && set -- "${1##*/}"; } || exit
find "$1" -type f | while IFS= read -r file; do
    sum=$(sha256sum <"$file")
    echo "$(wc -c <"$file") ${sum%% *} $file"
done
"""
READ = 'tail -c "+$2" "$1"'
FORGET = 'rm -rf "$1/jobs/$2"'
CANCEL = """
process=$(cat "$1/jobs/$2/process") 2>/dev/null
process=${process%%.*}
[ -z "$process" ] || kill -TERM "$process" 2>/dev/null
for pause in 1 1 1; do
    [ -n "$process" ] && kill -0 "$process" 2>/dev/null || break
    sleep "$pause"
done
rm -rf "$1/jobs/$2"
"""


@dataclass(frozen=True)
class _File:
    """A file to copy, under its path within what is copied."""

    path: str
    source: Path
    size: int
    sha256: str


class Remote:
    """A device that is reached by a link, and keeps what it was given for the next time."""

    is_here = False

    def __init__(self, link: Link, progress: Progress) -> None:
        self.name = link.name
        self._link, self._progress = link, progress
        self._root = ""
        self._running: set[str] = set()
        self._left = threading.Event()
        self._one_copies = threading.Lock()

    def __enter__(self) -> Self:
        self._link.connect()
        answer = ask(self._link, ENTER, PROGRAMS)
        word, _, rest = answer.text.partition(" ")
        if word == "lacks":
            raise DeviceError(f"{self.name} lacks {rest}, a program that every busybox has")
        if word != "is":
            raise DeviceError(f"{self.name}: no folder can be made there. Is its disk full?")
        self._root = rest
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends what still runs there, as after Ctrl-C; what cannot be told ends at its deadline."""
        self._left.set()
        for job in list(self._running):
            with contextlib.suppress(DeviceError):
                ask(self._link, CANCEL, self._root, job)

    # ---- copies to there

    def push(self, path: Path) -> str:
        """Content decides the place: what is there already is not sent again."""
        files = _files_of(path)
        key = cache.digest([[file.path, file.sha256] for file in files])[:20]
        folder = f"{self._root}/files/{key}"
        with self._one_copies:
            missing = self._insist(lambda: self._missing(folder, files))
            if missing is not None:
                self._send_all(folder, missing)
                if self._insist(lambda: self._ask(PUBLISH, folder)).code != 0:
                    raise DeviceError(f"{self.name}: {folder} cannot be made")
        return f"{folder}/{path.absolute().name}"

    def _missing(self, folder: str, files: Sequence[_File]) -> list[tuple[_File, int]] | None:
        """What is not whole there, and how much of it is; None where all is done already."""
        missing: list[tuple[_File, int]] = []
        free = 0
        for batch in _batches(files):
            lines = self._ask(STATE, folder, *(file.path for file in batch)).text.splitlines()
            if lines == ["there"]:
                return None
            if len(lines) != len(batch) + 1:
                raise DeviceError(f"{self.name}: {folder} cannot be made. Is its disk full?")
            free = _free_bytes(lines[0])
            sizes = zip(batch, lines[1:], strict=True)
            missing += [(file, int(have)) for file, have in sizes if have != "whole"]
        needed = sum(max(file.size - have, 0) for file, have in missing)
        if needed > free:
            raise DeviceError(
                f"{self.name}: {format_size(needed)} do not fit into the {format_size(free)} that "
                f"are free there. Make room in {self._root}"
            )
        return missing

    def _send_all(self, folder: str, missing: Sequence[tuple[_File, int]]) -> None:
        total = sum(file.size for file, _ in missing)
        with self._progress.step(f"Copying to {self.name}", -(-total // 10**6)) as step:
            meter = _Meter(step)
            for file, have in missing:
                self._send_file(folder, file, have, meter)

    def _send_file(self, folder: str, file: _File, have: int, meter: _Meter) -> None:
        known = [have]

        def attempt() -> None:
            # After a drop, only the device knows how much has come through.
            state = str(known.pop()) if known else self._state(folder, file)
            if state not in ("there", "whole"):
                self._send_rest(folder, file, min(int(state), file.size), meter)

        self._insist(attempt)

    def _state(self, folder: str, file: _File) -> str:
        return self._ask(STATE, folder, file.path).text.splitlines()[-1]

    def _send_rest(self, folder: str, file: _File, have: int, meter: _Meter) -> None:
        """Sends what is missing of a file; the device checks the whole."""
        block = have // BLOCK
        remote = f"{folder}.part/{file.path}"
        with file.source.open("rb") as source:
            source.seek(block * BLOCK)

            def moved(count: int) -> None:
                self._refuse_once_left()
                meter.moved(count)

            meter.at(file.path, block * BLOCK)
            answer = send(
                self._link,
                script("receive"),
                *(remote, str(file.size), file.sha256, str(block)),
                source=source,
                moved=moved,
                within=SILENCE_LIMIT + file.size / SLOWEST_HASH,
            )
        self._check_received(file, answer)

    def _check_received(self, file: _File, answer: Answer) -> None:
        lines = answer.text.splitlines() or [""]
        word, _, reason = lines[0].partition(" ")
        if word == "whole":
            return
        if word == "short":
            raise LinkDropped(f"the link to {self.name} dropped")
        if "No space left" in answer.text:
            raise DeviceError(
                f"{self.name}: the disk is full after a part of {file.path} "
                f"({format_size(file.size)}). Make room in {self._root}"
            )
        if word == "differs":
            raise LinkDropped(f"{self.name}: {file.path} arrived with another sha256")
        raise DeviceError(f"{self.name}: {file.path} cannot be written: {reason or lines[-1]}")

    # ---- copies from there

    def pull(self, remote: str, path: Path) -> None:
        listed = self._insist(lambda: self._ask(LIST, remote))
        files = [line.split(maxsplit=2) for line in listed.text.splitlines()]
        if listed.code != 0 or not files:
            raise DeviceError(f"{self.name}: there is no {remote}")
        is_folder = files[0][2].startswith("./")
        folder = remote if is_folder else str(PurePosixPath(remote).parent)
        total = sum(int(size) for size, *_ in files)
        with self._progress.step(f"Copying from {self.name}", -(-total // 10**6)) as step:
            meter = _Meter(step)
            for size, sha256, name in files:
                here = path / name if is_folder else path
                words = (f"{folder}/{name}", here, int(size), sha256, meter)
                self._insist(self._receive, *words)

    def _receive(self, remote: str, path: Path, size: int, sha256: str, meter: _Meter) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{sha256[:8]}.part")
        have = part.stat().st_size if part.exists() else 0
        meter.at(remote, have)
        with part.open("ab") as sink:
            words = (remote, str(have + 1))
            receive(self._link, READ, *words, sink=sink, size=size - have, moved=meter.moved)
        if _sha256(part) != sha256:
            part.unlink()
            raise LinkDropped(f"{self.name}: {remote} arrived with another sha256")
        part.replace(path)

    # ---- commands

    def run(self, command: Sequence[str], deadline: Seconds) -> Completed:
        """Detached there: a dropped link loses nothing, and the deadline is kept without us."""
        # The same command after a lost link finds its job, and perhaps its result.
        job = cache.digest(list(command))[:20]
        self._running.add(job)
        try:
            reply = self._reply(job, command, deadline)
            self._insist(lambda: self._ask(FORGET, self._root, job))
        except DeviceError:
            # Out of reach: it keeps its result for an hour, or ends at its deadline.
            self._running.discard(job)
            raise
        self._running.discard(job)
        first, _, rest = reply.partition(b"\n")
        return self._completed(first.decode(errors="replace").split(), rest, command, deadline)

    def _reply(self, job: str, command: Sequence[str], deadline: Seconds) -> bytes:
        """What the job says when it no longer runs: a line, and what the command printed."""
        words = (script("job"), self._root, job, str(max(round(deadline), 1)), *command)
        # Another job may have had as long before it.
        ends = time.monotonic() + 2 * deadline + 120
        reply = b"running"
        while reply.strip() == b"running":
            if self._left.is_set():
                # A call that was under way then may have begun it again.
                self._ask(CANCEL, self._root, job)
                self._refuse_once_left()
            if time.monotonic() > ends:
                raise DeviceError(f"{self.name}: {command[0]} does not end, nor say why")
            reply = self._insist(lambda: self._ask(script("start"), *words)).output
        return reply

    def _completed(
        self, state: list[str], rest: bytes, command: Sequence[str], deadline: Seconds
    ) -> Completed:
        program = PurePosixPath(command[0]).name
        match state:
            case ["no-python"]:
                raise DeviceError(
                    f"there is no Python on {self.name}: install python3, numpy and the runtime"
                )
            case ["no-program"]:
                raise DeviceError(f"{program} cannot be started on {self.name}: it is not there")
            case ["late", *_]:
                raise DeviceError(
                    f"{program} did not end within {deadline:.0f} s on {self.name}; it was stopped"
                )
            case ["busy", *_]:
                raise DeviceError(f"{self.name} is busy with another job. Try again later")
            case [code, out, err] if code.isdigit():
                stdout, stderr = rest[: int(out)], rest[int(out) : int(out) + int(err)]
                return Completed(
                    _as_here(int(code)),
                    stdout.decode(errors="replace"),
                    stderr.decode(errors="replace"),
                )
        raise DeviceError(
            f"{self.name} lost the result of {program}. Was it restarted, or is its disk full?"
        )

    # ---- the link

    def _ask(self, text: str, *words: str) -> Answer:
        return ask(self._link, text, *words)

    def _refuse_once_left(self) -> None:
        if self._left.is_set():
            raise DeviceError(f"{self.name} was left before it was done")

    def _insist(self, call: Callable[..., Result], *words: object) -> Result:
        """Calls again over a new connection when the link drops, as long as patience lasts."""
        for pause in RETRIES:
            try:
                return call(*words)
            except LinkDropped:
                self._left.wait(pause)
                self._refuse_once_left()
                with contextlib.suppress(LinkDropped):
                    self._link.connect()
        try:
            return call(*words)
        except LinkDropped as dropped:
            raise DeviceError(
                f"{dropped} and did not come back. The same command goes on where this one stopped"
            ) from None


class _Meter:
    """Advances a bar by whole megabytes, and never twice by the same ones."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._done: dict[str, int] = {}
        self._shown = 0
        self._path = ""

    def at(self, path: str, offset: int) -> None:
        self._path = path
        self._done[path] = offset
        self.moved(0)

    def moved(self, count: int) -> None:
        self._done[self._path] += count
        while self._shown < sum(self._done.values()) // 10**6:
            self._shown += 1
            self._step.advance()


def _files_of(path: Path) -> list[_File]:
    path = path.absolute()
    if not path.exists():
        raise DeviceError(f"there is no {path} to copy")
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [
        _File(str(file.relative_to(path.parent)), file, file.stat().st_size, _sha256(file))
        for file in found
        if file.is_file()
    ]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _batches(files: Sequence[_File]) -> Iterator[Sequence[_File]]:
    return (files[at : at + FILES_A_CALL] for at in range(0, len(files), FILES_A_CALL))


def _free_bytes(line: str) -> int:
    """The fourth column of `df -P`, in kilobytes."""
    columns = line.split()
    return int(columns[3]) * 1024 if len(columns) > 4 else 0


def _as_here(code: int) -> int:
    """A shell's 128 + n for a command that a signal ended, as Python's -n."""
    return 128 - code if 128 < code <= 128 + 64 else code
