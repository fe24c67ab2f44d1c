"""Converts a checkpoint as a stream: read rows, round them, write them, forget them.

Memory does not depend on the model's size, but on that of a chunk. Where everything will lie is
known before anything is read, so the disk is claimed at once, and an interrupted conversion goes
on at the tensor where it was cut off.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebuild.bundles.destination import check_writable
from edgebuild.cache import digest
from edgebuild.llm._kernels_numpy import Floats
from edgebuild.llm.checkpoint import FLOAT_METHODS, PACKED_METHODS, Checkpoint, Cut, StoredTensor
from edgebuild.llm.importance import Importances
from edgebuild.llm.journal import JOURNAL, Journal
from edgebuild.llm.mix import Layouts
from edgebuild.llm.quantize import Packed, quantize
from edgebuild.llm.repack import Packing, Repacked, is_packed, packed_bytes, packing_of, repacked
from edgebuild.llm.rows import Rows, open_rows
from edgebuild.llm.save import copy_beside
from edgebuild.llm.store import (
    DATA,
    INDEX,
    SCHEMA,
    Entry,
    Index,
    Piece,
    dump_index,
    end_of,
    hash_of,
    lay_out,
)
from edgebuild.vocabulary.contracts import Progress, Step
from edgebuild.vocabulary.errors import InvalidCheckpoint, InvalidDestination
from edgebuild.vocabulary.units import format_size, format_time

# Weights that are rounded at once: enough that calls cost nothing, few enough for the cache.
CHUNK = 2**20
# Of packed matrices, which are read by columns: more at once, and fewer reads.
PACKED_CHUNK = 2**22
# Each takes memory for a few chunks, and four outrun most disks.
MOST_WORKERS = 4
# How many bytes a step of progress stands for.
STEP = 16_000_000
# By these a folder is known as the place of a conversion.
OWN_FILES = (JOURNAL, INDEX, DATA)

# One for each of a tensor's pieces.
Arrays = Sequence[NDArray[Any]]


@dataclass(frozen=True)
class Converted:
    """A finished conversion; `resumed` tensors were there already, `read` bytes were not."""

    index: Index
    folder: Path
    read: int
    resumed: int
    seconds: float

    @property
    def summary(self) -> dict[str, object]:
        return {
            "folder": str(self.folder),
            "bytes": self.index.size,
            "tensors": len(self.index.entries),
            "resumed": self.resumed,
            "read": self.read,
            "seconds": self.seconds,
        }


def convert(
    checkpoint: Checkpoint,
    out: Path,
    layouts: Layouts,
    progress: Progress,
    importances: Importances | None = None,
) -> Converted:
    """Writes the data file and its index into a folder, or goes on with what is there.

    Args:
        importances: how much each input of a tensor counts; scales are searched for by it. None
            takes the scales that cover the extremes.

    Raises:
        InvalidCheckpoint: no weights, or some that are not finite.
        InvalidDestination: a folder with something else in it, in use, or without the space.
    """
    _refuse_unreadable(checkpoint)
    packing = packing_of(checkpoint)
    if packing:
        layouts = Repacked(checkpoint, packing, layouts)
    entries = lay_out(checkpoint.decoder, layouts)
    identity = _identity(checkpoint, entries, importances)
    began = time.monotonic()
    with _claimed(out, end_of(entries)) as data:
        journal = Journal(out / JOURNAL, identity)
        if journal.is_of_another:
            progress.say(f"{out} holds what another conversion has written: it is replaced")
        finished = _still_intact(journal, entries, data, progress)
        left = [entry for entry in entries if entry.name not in finished]
        if left:
            (out / INDEX).unlink(missing_ok=True)
        total = sum(_stored_bytes(entry.name, checkpoint) for entry in left)
        with progress.step("convert", -(-total // STEP)) as bar:
            meter = _Meter(bar, total)

            def write(entry: Entry) -> Entry:
                if packing and is_packed(entry.name, checkpoint):
                    arrays = _repacked_arrays(entry, checkpoint, packing, meter)
                else:
                    arrays = _rounded_arrays(entry, checkpoint.tensors, importances, meter)
                return _write(entry, data, arrays)

            def note(written: Entry) -> None:
                journal.append(written.name, [piece.sha256 for piece in written.pieces])
                finished[written.name] = written

            _side_by_side(write, left, note, meter)
        os.fsync(data)
    decoder = checkpoint.decoder
    ordered = tuple(finished[entry.name] for entry in entries)
    index = Index(SCHEMA, decoder.name, decoder.family, identity, ordered)
    _publish(index, checkpoint.path, out)
    return Converted(index, out, total, len(entries) - len(left), time.monotonic() - began)


def _refuse_unreadable(checkpoint: Checkpoint) -> None:
    folder = checkpoint.path
    if not checkpoint.tensors:
        raise InvalidCheckpoint(f"{folder} has no weights: *.safetensors is missing")
    if checkpoint.method not in FLOAT_METHODS + PACKED_METHODS:
        raise InvalidCheckpoint(
            f"{folder} is quantized by {checkpoint.method} already: give the floats that it was "
            "made from"
        )


def _stored_bytes(name: str, checkpoint: Checkpoint) -> int:
    if is_packed(name, checkpoint):
        return packed_bytes(name, checkpoint)
    return checkpoint.tensors[name].length


def _identity(
    checkpoint: Checkpoint, entries: Sequence[Entry], importances: Importances | None
) -> str:
    """Names everything that the result depends on; files by size and time, not by content."""
    tensors = checkpoint.tensors
    files = sorted({tensor.file for tensor in tensors.values()})
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    places = [(e.name, str(e.layout), [p.offset for p in e.pieces], e.norm) for e in entries]
    # Of a network without some of its parts, others have their names, and are read in part.
    named = [(name, one.name, _cut_digest(one.cut)) for name, one in sorted(tensors.items())]
    return digest(SCHEMA, stats, named, places, importances.name if importances else "")


def _cut_digest(cut: Cut) -> str:
    kept = (cut.rows, cut.columns)
    return digest(*([] if some is None else some.tolist() for some in kept))


# ---- the folder


@contextmanager
def _claimed(out: Path, size: int) -> Iterator[int]:
    """The data file, open, ours alone, and as large as it will be."""
    refuse_other_content(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        data = os.open(out / DATA, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as problem:
        raise InvalidDestination(f"{out} cannot be written: {problem.strerror}") from None
    try:
        fcntl.flock(data, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(data, size)
        os.posix_fallocate(data, 0, size)
        yield data
    except BlockingIOError:
        raise InvalidDestination(f"{out} is being written by another conversion") from None
    except OSError as problem:
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        free = shutil.disk_usage(out).free
        raise InvalidDestination(
            f"{out} needs {format_size(size)}, and {format_size(free)} are free there"
        ) from None
    finally:
        os.close(data)


def refuse_other_content(out: Path, own: Sequence[str] = OWN_FILES) -> None:
    """A folder may be new, empty, or hold one of its own files, as an earlier run has left them.

    Raises:
        InvalidDestination: it holds something else, is a file, or cannot be written.
    """
    check_writable(out)
    if not out.exists():
        return
    if not out.is_dir():
        raise InvalidDestination(f"{out} is a file: give a folder")
    is_ours = any((out / name).is_file() for name in own)
    if any(out.iterdir()) and not is_ours:
        raise InvalidDestination(f"{out} holds something else: give a new folder")


def _still_intact(
    journal: Journal, entries: Sequence[Entry], data: int, progress: Progress
) -> dict[str, Entry]:
    """What an earlier run has written, as far as its hashes are still right."""
    noted = journal.read()
    found = {}
    done = [entry for entry in entries if len(noted.get(entry.name, ())) == len(entry.pieces)]
    if not done:
        return {}
    with progress.step("check what is there", len(done)) as bar:
        for entry in done:
            pieces = _with_hashes(entry.pieces, noted[entry.name])
            if all(hash_of(data, piece) == piece.sha256 for piece in pieces):
                found[entry.name] = replace(entry, pieces=pieces)
            bar.advance()
    return found


def _with_hashes(pieces: Sequence[Piece], hashes: Sequence[str]) -> tuple[Piece, ...]:
    return tuple(replace(p, sha256=sha) for p, sha in zip(pieces, hashes, strict=True))


def _publish(index: Index, checkpoint: Path, out: Path) -> None:
    """The index last, whole or not at all: a folder that has it is finished."""
    copy_beside(checkpoint, out)
    part = out / f"{INDEX}.part"
    part.write_bytes(dump_index(index))
    os.replace(part, out / INDEX)


# ---- tensors


def _side_by_side(
    write: Callable[[Entry], Entry],
    entries: Sequence[Entry],
    note: Callable[[Entry], None],
    meter: _Meter,
) -> None:
    """Writes a tensor on each core, since the loops need no interpreter; notes what is done.

    What fails, here or there, ends all at their next chunks.
    """
    workers = min(len(os.sched_getaffinity(0)), MOST_WORKERS)
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(write, entry) for entry in entries]
        try:
            for future in as_completed(futures):
                note(future.result())
        except BaseException:
            meter.stop()
            pool.shutdown(cancel_futures=True)
            raise


def _write(entry: Entry, data: int, arrays: Iterator[Arrays]) -> Entry:
    """Writes what comes of a tensor into its place; the entry with its hashes."""
    writers = [_Writer(data, piece.offset) for piece in entry.pieces]
    for some in arrays:
        for writer, array in zip(writers, some, strict=True):
            writer.write(array)
    return replace(entry, pieces=_with_hashes(entry.pieces, [w.hash.hexdigest() for w in writers]))


def _repacked_arrays(
    entry: Entry, checkpoint: Checkpoint, packing: Packing, meter: _Meter
) -> Iterator[Arrays]:
    stored = _stored_bytes(entry.name, checkpoint)
    for packed in repacked(entry.name, entry.shape, checkpoint, packing, PACKED_CHUNK):
        yield _in_order(packed)
        meter.advance(stored * len(packed.codes) // entry.rows)


def _rounded_arrays(
    entry: Entry,
    tensors: Mapping[str, StoredTensor],
    importances: Importances | None,
    meter: _Meter,
) -> Iterator[Arrays]:
    is_searched = importances is not None and not entry.layout.is_float
    importance = importances.of(entry) if importances and is_searched else None
    with open_rows(entry.name, tensors) as rows:
        for first, chunk in rows.chunks(CHUNK):
            yield _arrays(entry, chunk, first, importance, rows)
            meter.advance(chunk.size * rows.tensor.length // math.prod(rows.shape))


def _arrays(
    entry: Entry, chunk: Floats, first: int, importance: Floats | None, rows: Rows
) -> Arrays:
    """The arrays of a few rows, in the order of the entry's pieces."""
    try:
        if entry.layout.is_float:
            return [_as_floats(chunk, entry.layout.bits)]
        packed = quantize(chunk, entry.layout, importance)
    except ValueError as problem:
        last = first + len(chunk) - 1
        raise InvalidCheckpoint(
            f"{rows.tensor.file}: {entry.name}, rows {first} to {last}: {problem}"
        ) from None
    return _in_order(packed)


def _in_order(packed: Packed) -> Arrays:
    """As a layout lists its pieces."""
    arrays: list[NDArray[Any]] = [packed.codes, packed.scales]
    return arrays if packed.zero_points is None else [*arrays, packed.zero_points]


def _as_floats(chunk: Floats, bits: int) -> NDArray[Any]:
    if not np.isfinite(chunk).all():
        raise ValueError("a weight is not finite")
    if bits == 32:
        return chunk
    with np.errstate(over="ignore"):
        halves = chunk.astype(np.float16)
    if not np.isfinite(halves).all():
        raise ValueError("a weight is too large for fp16")
    return halves


class _Writer:
    """Appends to one piece, hashing what passes."""

    def __init__(self, data: int, offset: int) -> None:
        self._data, self._offset = data, offset
        self.hash = hashlib.sha256()

    def write(self, array: NDArray[Any]) -> None:
        left = memoryview(array.tobytes())
        self.hash.update(left)
        while left:
            count = os.pwrite(self._data, left, self._offset)
            left, self._offset = left[count:], self._offset + count


class _Stopped(Exception):
    """Another thread has failed, or somebody wants no more."""


class _Meter:
    """Progress of all threads by bytes read, with their rate and the time that is left."""

    def __init__(self, bar: Step, total: int) -> None:
        self._bar, self._total = bar, total
        self._began, self._done, self._shown = time.monotonic(), 0, 0
        self._lock, self._is_stopped = threading.Lock(), False

    def stop(self) -> None:
        """Ends every thread at its next chunk."""
        self._is_stopped = True

    def advance(self, count: int) -> None:
        if self._is_stopped:
            raise _Stopped
        with self._lock:
            self._done += count
            while self._shown < self._done // STEP:
                self._shown += 1
                self._bar.advance(self._note())

    def _note(self) -> str:
        rate = self._done / max(time.monotonic() - self._began, 1e-9)
        left = (self._total - self._done) / rate
        return f"{format_size(rate)}/s, {format_time(left)} left"
