"""Divides a text, or the samples of a teacher, into what is learned, what ends it, what proves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgebuild.llm.sequences import Tokens, sequences_of
from edgebuild.llm.text import CALIBRATING, STRETCH, TOKENIZER, Tokenizer, read_written
from edgebuild.vocabulary.errors import InputError, InvalidCheckpoint

SAMPLES = ".jsonl"
# Of ten parts of a text eight are learned; one decides when to stop, and no choice sees the last.
PARTS = 10
STOPPING_PART, PROVING_PART = PARTS - 2, PARTS - 1
# Stretches that are looked at again and again, and those that prove.
STOPPING, PROVING = 16, 8


@dataclass(frozen=True)
class Corpus:
    """Stretches of tokens [count, tokens]; those that calibrate are among the learned."""

    name: str
    calibrating: Tokens
    learning: Tokens
    stopping: Tokens
    proving: Tokens


def read_corpus(file: Path, tokenizer: Tokenizer | None, source: Path, context: int) -> Corpus:
    """A text by its length, eight parts of ten to learn; samples (.jsonl) by their number.

    Raises:
        InvalidCheckpoint: there is no tokenizer.
        InputError: the file cannot be read, holds no samples, or is too short.
    """
    if tokenizer is None:
        raise InvalidCheckpoint(
            f"{source} has no {TOKENIZER}: without it, {file} cannot be read as tokens. Save the "
            "tokenizer there with save_pretrained"
        )
    written = read_written(file)
    if file.suffix == SAMPLES:
        learned, stopping, proving = _of_samples(file, written, tokenizer)
    else:
        learned, stopping, proving = _of_text(tokenizer.tokens(written))
    length = min(STRETCH, context)
    if min(map(len, (learned, stopping, proving))) < length:
        whole = sum(map(len, (learned, stopping, proving)))
        raise InputError(
            f"{file} is too short: it has {whole} tokens, and a tenth of them must be {length} at "
            "least; a model that is trained wants many more"
        )
    first = tokenizer.first
    return Corpus(
        file.name,
        sequences_of(learned, length, CALIBRATING, first),
        sequences_of(learned, length, len(learned), first),
        sequences_of(stopping, length, STOPPING, first),
        sequences_of(proving, length, PROVING, first),
    )


def _of_text(tokens: Sequence[int]) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    stop, prove = (len(tokens) * part // PARTS for part in (STOPPING_PART, PROVING_PART))
    return tokens[:stop], tokens[stop:prove], tokens[prove:]


def _of_samples(
    file: Path, written: str, tokenizer: Tokenizer
) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """Whole samples after each other, each begun as texts are."""
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    begun = [] if tokenizer.first is None else [tokenizer.first]
    for number, sample in enumerate(_samples(file, written)):
        place = max(number % PARTS - STOPPING_PART + 1, 0)
        parts[place].extend(begun + tokenizer.tokens(sample))
    return parts


def _samples(file: Path, written: str) -> Iterator[str]:
    """What `distill-data` has written: a prompt, and what the teacher went on with."""
    for number, line in enumerate(written.splitlines(), 1):
        try:
            match json.loads(line):
                case {"prompt": str(prompt), "text": str(text)}:
                    yield f"{prompt} {text}" if prompt and not text[:1].isspace() else prompt + text
                    continue
        except ValueError:
            pass
        raise InputError(
            f"{file}, line {number}: no sample; give what `edgebuild distill-data` wrote, or a text"
        )
