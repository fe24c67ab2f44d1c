"""Copies files to and from a device: resumed after a drop, compared by sha256, or not there."""

from __future__ import annotations

import hashlib
import stat
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgebuild import cache
from edgebuild.devices._link import SILENCE_LIMIT, Answer, LinkDropped, receive, script, send
from edgebuild.devices._patience import Patience
from edgebuild.vocabulary.contracts import Progress, Step
from edgebuild.vocabulary.errors import DeviceError
from edgebuild.vocabulary.units import format_size

BLOCK = 1 << 16
# Even a slow board reads and hashes so many bytes a second.
SLOWEST_HASH = 5e6
# What one call may name; no system takes an endless command line.
FILES_A_CALL = 50
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
RUN = 'cd "$1.part" && shift && chmod 755 "$@"'
PUBLISH = '[ -d "$1" ] || mv "$1.part" "$1"'
LIST = """
cd "$1" 2>/dev/null && set -- . || { cd "${1%/*}" && set -- "${1##*/}"; } || exit
find "$1" -type f | while IFS= read -r file; do
    sum=$(sha256sum <"$file")
    echo "$(wc -c <"$file") ${sum%% *} $file"
done
"""
READ = 'tail -c "+$2" "$1"'


@dataclass(frozen=True)
class _File:
    """A file to copy, under its path within what is copied."""

    path: str
    source: Path
    size: int
    sha256: str
    is_program: bool


class Copies:
    """What was copied to a device stays there, under a name made from its content."""

    def __init__(self, patience: Patience, progress: Progress) -> None:
        self._name = patience.link.name
        self._patience, self._progress = patience, progress
        self._one_at_a_time = threading.Lock()

    def push(self, root: str, path: Path) -> str:
        """Content decides the place: what is there already is not sent again."""
        files = _files_of(path)
        key = cache.digest([[file.path, file.sha256, file.is_program] for file in files])[:20]
        folder = f"{root}/files/{key}"
        with self._one_at_a_time:
            missing = self._patience.insist(lambda: self._missing(folder, files))
            if missing is not None:
                self._send_all(folder, missing)
                if programs := [file.path for file in files if file.is_program]:
                    self._patience.insist(lambda: self._patience.ask(RUN, folder, *programs))
                if self._patience.insist(lambda: self._patience.ask(PUBLISH, folder)).code != 0:
                    raise DeviceError(f"{self._name}: {folder} cannot be made")
        return f"{folder}/{path.absolute().name}"

    def _missing(self, folder: str, files: Sequence[_File]) -> list[tuple[_File, int]] | None:
        """What is not whole there, and how much of it is; None where all is done already."""
        missing: list[tuple[_File, int]] = []
        free = 0
        for batch in _batches(files):
            lines = self._patience.ask(
                STATE, folder, *(file.path for file in batch)
            ).text.splitlines()
            if lines == ["there"]:
                return None
            if len(lines) != len(batch) + 1:
                raise DeviceError(f"{self._name}: {folder} cannot be made. Is its disk full?")
            free = _free_bytes(lines[0])
            sizes = zip(batch, lines[1:], strict=True)
            missing += [(file, int(have)) for file, have in sizes if have != "whole"]
        needed = sum(max(file.size - have, 0) for file, have in missing)
        if needed > free:
            raise DeviceError(
                f"{self._name}: {format_size(needed)} do not fit into the {format_size(free)} that "
                f"are free. Make room there"
            )
        return missing

    def _send_all(self, folder: str, missing: Sequence[tuple[_File, int]]) -> None:
        total = sum(file.size for file, _ in missing)
        with self._progress.step(f"Copying to {self._name}", -(-total // 10**6)) as step:
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

        self._patience.insist(attempt)

    def _state(self, folder: str, file: _File) -> str:
        return self._patience.ask(STATE, folder, file.path).text.splitlines()[-1]

    def _send_rest(self, folder: str, file: _File, have: int, meter: _Meter) -> None:
        """Sends what is missing of a file; the device checks the whole."""
        block = have // BLOCK
        remote = f"{folder}.part/{file.path}"
        with file.source.open("rb") as source:
            source.seek(block * BLOCK)

            def moved(count: int) -> None:
                self._patience.refuse_once_left()
                meter.moved(count)

            meter.at(file.path, block * BLOCK)
            answer = send(
                self._patience.link,
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
            raise LinkDropped(f"the link to {self._name} dropped")
        if "No space left" in answer.text:
            raise DeviceError(
                f"{self._name}: the disk is full after a part of {file.path} "
                f"({format_size(file.size)}). Make room there"
            )
        if word == "differs":
            raise LinkDropped(f"{self._name}: {file.path} arrived with another sha256")
        raise DeviceError(f"{self._name}: {file.path} cannot be written: {reason or lines[-1]}")

    def pull(self, remote: str, path: Path) -> None:
        listed = self._patience.insist(lambda: self._patience.ask(LIST, remote))
        files = [line.split(maxsplit=2) for line in listed.text.splitlines()]
        if listed.code != 0 or not files:
            raise DeviceError(f"{self._name}: there is no {remote}")
        is_folder = files[0][2].startswith("./")
        folder = remote if is_folder else str(PurePosixPath(remote).parent)
        total = sum(int(size) for size, *_ in files)
        with self._progress.step(f"Copying from {self._name}", -(-total // 10**6)) as step:
            meter = _Meter(step)
            for size, sha256, name in files:
                here = path / name if is_folder else path
                words = (f"{folder}/{name}", here, int(size), sha256, meter)
                self._patience.insist(self._receive, *words)

    def _receive(self, remote: str, path: Path, size: int, sha256: str, meter: _Meter) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{sha256[:8]}.part")
        have = part.stat().st_size if part.exists() else 0
        meter.at(remote, have)
        with part.open("ab") as sink:
            words = (remote, str(have + 1))
            receive(
                self._patience.link, READ, *words, sink=sink, size=size - have, moved=meter.moved
            )
        if _sha256(part) != sha256:
            part.unlink()
            raise LinkDropped(f"{self._name}: {remote} arrived with another sha256")
        part.replace(path)


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
    return [_file_of(file, path.parent) for file in found if file.is_file()]


def _file_of(file: Path, folder: Path) -> _File:
    known, name = file.stat(), str(file.relative_to(folder))
    return _File(name, file, known.st_size, _sha256(file), bool(known.st_mode & stat.S_IXUSR))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _batches(files: Sequence[_File]) -> Iterator[Sequence[_File]]:
    return (files[at : at + FILES_A_CALL] for at in range(0, len(files), FILES_A_CALL))


def _free_bytes(line: str) -> int:
    """The fourth column of `df -P`, in kilobytes."""
    columns = line.split()
    return int(columns[3]) * 1024 if len(columns) > 4 else 0
