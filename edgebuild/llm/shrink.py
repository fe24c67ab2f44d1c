"""The straight line to a smaller model: see what counts, prune, distill, prove, publish.

All of it happens in a folder of its own beside the wanted one, which is there whole or not at all.
Cut off anywhere, the same command goes on.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError

from edgebuild.cache import digest, toolchain
from edgebuild.llm.calibrate import calibrate
from edgebuild.llm.checkpoint import Checkpoint, load_checkpoint
from edgebuild.llm.corpus import Corpus, read_corpus
from edgebuild.llm.forward import Forward
from edgebuild.llm.proof import distance
from edgebuild.llm.prune import (
    Counts,
    Shares,
    Subject,
    choose_kept,
    count_kept,
    everything,
    open_subject,
    write_pruned,
)
from edgebuild.llm.recover import (
    Alone,
    Classroom,
    Effort,
    Machine,
    Recovered,
    open_machine,
    recovered,
    require_transformers,
    steps_within,
)
from edgebuild.llm.save import Planned, write_rest, write_tensors
from edgebuild.llm.source import open_source
from edgebuild.llm.text import STRETCH, open_tokenizer
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.errors import InputError, InvalidDestination, first_line
from edgebuild.vocabulary.language_model import Proof, Shrunk
from edgebuild.vocabulary.silence import Silence

# What was done, in the folder of the result.
FILE = "shrink.json"
# In the folder of the work: what it is for and how many steps it has, who is at it, its stages.
JOURNAL, LOCK, STATE = "journal.json", "lock", "state.pt"
ORIGINAL, PRUNED, STUDENT = "original", "pruned", "student"


def shrink(
    path: Path, out: Path, text: Path, shares: Shares, effort: Effort, progress: Progress
) -> Shrunk | None:
    """Prunes a decoder and distills it from what it was, into an ordinary checkpoint.

    Of the processes that accelerate has started, only the first one returns what was made.

    Args:
        path: the folder of a Hugging Face decoder, or a .gguf.
        text: a text, or the .jsonl that `distill-data` wrote.

    Raises:
        InvalidCheckpoint: no decoder in floats, or one without a tokenizer.
        InputError: a text that is too short, or a share that changes nothing.
        InvalidDestination: a folder that holds something else, is in use, or is on a full disk.
        MissingPackage: transformers is not installed.
        MethodFailed: the loss is no number any more.
    """
    if effort.steps:
        require_transformers(path)
    source = open_subject(open_source(path))
    counts = count_kept(source.sizes, shares)
    if path.is_dir():
        # What cannot be used is refused before anything is written.
        _corpus(source, text)
    identity = _identity(source.checkpoint, text, shares, effort)
    out = out.absolute()
    work = out.with_name(f"{out.name}.part")
    if finished := _finished(out, identity):
        progress.say(f"{out} was there already")
        shutil.rmtree(work, ignore_errors=True)
        return finished
    machine = open_machine(progress) if effort.steps else Alone(torch.device("cpu"))
    if not machine.is_main_process:
        teacher, corpus = _prepared(source, text, work, machine)
        _distilled(teacher, corpus, effort, work, machine, Silence())
        return None
    # What another release has left half done may have another form.
    with _claimed(work, digest(identity, toolchain())):
        _prune(source, counts, text, work, progress)
        teacher, corpus = _prepared(source, text, work, machine)
        done = _distilled(teacher, corpus, effort, work, machine, progress)
        if done:
            _once(work / STUDENT, lambda part: _write_student(done, work / PRUNED, part))
        return _published(teacher, corpus, done, identity, path, out, work, progress)


# ---- the stages


def _prune(source: Subject, counts: Counts, text: Path, work: Path, progress: Progress) -> None:
    """Writes what stays; and before, the original as a checkpoint if it is none."""

    def copy(part: Path) -> None:
        write_pruned(source, everything(source), part, progress)

    def prune(part: Path) -> None:
        subject = _teacher(source, work)
        forward = Forward(subject.checkpoint, subject.network)
        seen = calibrate(forward, _corpus(subject, text).calibrating, progress)
        write_pruned(subject, choose_kept(subject, seen, counts), part, progress)

    if not source.checkpoint.path.is_dir():
        _once(work / ORIGINAL, copy)
    _once(work / PRUNED, prune)


def _prepared(source: Subject, text: Path, work: Path, machine: Machine) -> tuple[Subject, Corpus]:
    machine.wait_for_everyone()
    teacher = _teacher(source, work)
    return teacher, _corpus(teacher, text)


def _distilled(
    teacher: Subject,
    corpus: Corpus,
    effort: Effort,
    work: Path,
    machine: Machine,
    progress: Progress,
) -> Recovered | None:
    """The best weights; None where there is nothing to learn."""
    if not effort.steps:
        return None
    room = Classroom(teacher, work / PRUNED, corpus, machine)
    steps = effort.steps
    if effort.minutes is not None:
        noted = _journal(work).get("steps")
        # A run that goes on keeps to the length that it began with.
        steps = noted if isinstance(noted, int) else steps_within(effort.minutes, room, effort)
        if machine.is_main_process:
            _note(work, {**_journal(work), "steps": steps})
    return recovered(room, effort, steps, work / STATE, progress)


def _write_student(done: Recovered, pruned: Path, folder: Path) -> None:
    """What was learned, in the place of what was pruned."""
    checkpoint = load_checkpoint(pruned)
    planned = [Planned(name, one.dtype, one.shape) for name, one in checkpoint.tensors.items()]
    arrays = ([done.weights[one.name].float().cpu().numpy()] for one in planned)
    write_tensors(folder, planned, arrays)
    write_rest(checkpoint, checkpoint.settings, folder)


def _published(
    teacher: Subject,
    corpus: Corpus,
    done: Recovered | None,
    identity: str,
    path: Path,
    out: Path,
    work: Path,
    progress: Progress,
) -> Shrunk:
    """Compares with the original on text that no choice saw, and puts the result in its place."""
    forward = Forward(teacher.checkpoint, teacher.network)
    states = forward.states(corpus.proving, progress)

    def proof(folder: Path) -> Proof:
        other = open_subject(load_checkpoint(folder))
        made = Forward(other.checkpoint, other.network)
        return distance(made, forward, corpus.name, corpus.proving, states, progress)

    folder = work / (STUDENT if done else PRUNED)
    found = Shrunk(
        edgebuild=importlib.metadata.version("edgebuild"),
        made_from=identity,
        source=path.name,
        before=teacher.sizes,
        after=open_subject(load_checkpoint(folder)).sizes,
        steps=done.steps if done else 0,
        pruned=proof(work / PRUNED),
        distilled=proof(folder) if done else None,
    )
    (folder / FILE).write_bytes(TypeAdapter(Shrunk).dump_json(found, indent=1))
    os.replace(folder, out)
    shutil.rmtree(work)
    return found


# ---- what they read


def _teacher(source: Subject, work: Path) -> Subject:
    """The original as a checkpoint: its own folder, or what was written of a GGUF file."""
    if source.checkpoint.path.is_dir():
        return source
    return open_subject(load_checkpoint(work / ORIGINAL))


def _corpus(subject: Subject, text: Path) -> Corpus:
    checkpoint = subject.checkpoint
    tokenizer = open_tokenizer(checkpoint.path)
    context = checkpoint.decoder.longest_context or STRETCH
    return read_corpus(text, tokenizer, checkpoint.path, context)


def _identity(checkpoint: Checkpoint, text: Path, shares: Shares, effort: Effort) -> str:
    """Names everything that the result depends on; weights by size and time, not by content."""
    files = sorted({tensor.file for tensor in checkpoint.tensors.values()})
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    try:
        with text.open("rb") as opened:
            read = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as problem:
        raise InputError(f"{text} cannot be read: {problem.strerror}") from None
    settings = dict(checkpoint.settings)
    return digest(stats, settings, read, asdict(shares), asdict(effort))


# ---- the folders


def _finished(out: Path, identity: str) -> Shrunk | None:
    """What an earlier run of the same has made.

    Raises:
        InvalidDestination: the folder holds something else, or is a file.
    """
    if not out.exists():
        return None
    if not out.is_dir():
        raise InvalidDestination(f"{out} is a file: give a folder")
    try:
        found = TypeAdapter(Shrunk).validate_json((out / FILE).read_bytes())
    except (OSError, ValidationError):
        found = None
    if found and found.made_from == identity:
        return found
    if any(out.iterdir()):
        raise InvalidDestination(f"{out} holds something else: give a new folder")
    return None


@contextmanager
def _claimed(work: Path, identity: str) -> Iterator[None]:
    """The folder of the work, ours alone; what was for something else is begun anew."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = os.open(work / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as problem:
        raise InvalidDestination(f"{work} cannot be written: {problem.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _journal(work).get("made_from") != identity:
            _clear(work)
            _note(work, {"made_from": identity})
        yield
    except BlockingIOError:
        raise InvalidDestination(f"{work} is in use by another run of this") from None
    finally:
        os.close(lock)


def _clear(work: Path) -> None:
    left = [each for each in work.iterdir() if each.name != LOCK]
    if left and not (work / JOURNAL).is_file():
        raise InvalidDestination(f"{work}, where the work is done, holds something else: move it")
    for each in left:
        if each.is_dir():
            shutil.rmtree(each)
        else:
            each.unlink()


def _journal(work: Path) -> Mapping[str, object]:
    try:
        found = json.loads((work / JOURNAL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _note(work: Path, noted: Mapping[str, object]) -> None:
    part = work / f"{JOURNAL}.part"
    part.write_text(json.dumps(noted), encoding="utf-8")
    os.replace(part, work / JOURNAL)


def _once(folder: Path, write: Callable[[Path], None]) -> None:
    """A folder that is whole, written now unless it is there."""
    if folder.is_dir():
        return
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        write(part)
    except OSError as problem:
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise InvalidDestination(f"{part} cannot be written: {first_line(problem)}") from None
    os.replace(part, folder)
