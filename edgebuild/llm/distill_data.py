"""Lets a teacher's bundle write the texts that a student is trained on.

Sequence-level distillation (Kim and Rush, arXiv 1606.07947), by sampling instead of a beam: the
teacher goes on from prompts, or from nothing, and what it writes is the student's data.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from edgebuild.generate import Decoder, LiteDecoder, open_decoder
from edgebuild.llm._kernels_numpy import Floats
from edgebuild.llm.bundle import load_model
from edgebuild.llm.text import TOKENIZER, Tokenizer, open_tokenizer
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.errors import InputError, InvalidBundle, InvalidDestination, first_line

# In a row so many texts that were written before end the work: there is little new to say.
MOST_REPEATS = 50


@dataclass(frozen=True)
class Sampling:
    """How texts are drawn: so many, of so many tokens at most, from probabilities softened so."""

    count: int
    tokens: int
    temperature: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Sample:
    """One text; `number` says from which draw, so that a run that was cut off goes on after it."""

    number: int
    prompt: str
    text: str
    seed: int


def write_samples(
    folder: Path, prompts: Path | None, out: Path, sampling: Sampling, progress: Progress
) -> int:
    """Appends samples to a file of JSON lines until it has as many; returns how many it has.

    A text that is there already is left out. Draws depend on the seed and their number alone.

    Raises:
        InvalidBundle: no bundle, or one without a tokenizer.
        InputError: prompts that cannot be read or are longer than the bundle's context.
        InvalidDestination: a file of something else.
    """
    load_model(folder)
    tokenizer = open_tokenizer(folder)
    if tokenizer is None:
        raise InvalidBundle(f"{folder} has no {TOKENIZER}: it cannot write text")
    begun = _prompts(prompts)
    known = list(_known(out))
    seen = {_key(sample.prompt, sample.text) for sample in known}
    decoder = open_decoder(str(folder))
    number, repeats = max((sample.number for sample in known), default=-1) + 1, 0
    with (
        out.open("a", encoding="utf-8") as file,
        progress.step("write samples", sampling.count) as bar,
    ):
        for _ in known[: sampling.count]:
            bar.advance()
        while len(seen) < sampling.count and repeats < MOST_REPEATS:
            prompt = begun[number % len(begun)]
            text = _written(decoder, tokenizer, prompt, number, sampling)
            key = _key(prompt, text)
            repeats = repeats + 1 if key in seen or not text.strip() else 0
            if not repeats:
                seen.add(key)
                sample = Sample(number, prompt, text, sampling.seed)
                file.write(json.dumps(asdict(sample), ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
                bar.advance()
            number += 1
    if repeats:
        progress.say(f"the last {MOST_REPEATS} texts were there already: {len(seen)} are all")
    return len(seen)


def _prompts(file: Path | None) -> list[str]:
    """One a line; a single empty one where there is no file."""
    if file is None:
        return [""]
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"{file} cannot be read as text: {first_line(problem)}") from None
    found = [line for line in lines if line]
    if not found:
        raise InputError(f"{file} has no prompt: write one a line")
    return found


def _known(out: Path) -> Iterator[Sample]:
    """What an earlier run has written; a line that was cut off is taken away."""
    if not out.exists():
        return
    whole, kept = out.read_bytes(), 0
    for line in whole.splitlines(keepends=True):
        try:
            sample = Sample(**json.loads(line))
        except (ValueError, TypeError):
            if kept + len(line) < len(whole) or not _looks_ours(line):
                raise InvalidDestination(
                    f"{out} holds something else than samples: give another file"
                ) from None
            break
        kept += len(line)
        yield sample
    with out.open("r+b") as file:
        file.truncate(kept)


def _looks_ours(line: bytes) -> bool:
    start = b'{"number": '
    return line.startswith(start) or start.startswith(line)


def _written(
    decoder: Decoder | LiteDecoder,
    tokenizer: Tokenizer,
    prompt: str,
    number: int,
    sampling: Sampling,
) -> str:
    """What the teacher goes on with."""
    chance = np.random.default_rng((sampling.seed, number))
    start = [] if tokenizer.first is None else [tokenizer.first]
    tokens = start + tokenizer.tokens(prompt)
    if not tokens:
        raise InputError("nothing begins a text in this model: give --prompts")
    room = decoder.context - len(tokens)
    if room < 1:
        raise InputError(
            f"the prompt {prompt[:40]!r} has {len(tokens)} tokens, and the bundle remembers "
            f"{decoder.context}"
        )
    decoder.forget()
    logits = decoder.read(tokens)
    found: list[int] = []
    while len(found) < min(sampling.tokens, room):
        token = _drawn(logits[-1], sampling.temperature, chance)
        if token in tokenizer.stops:
            break
        found.append(token)
        if len(found) < room:
            logits = decoder.read([token])
    return tokenizer.text(found)


def _drawn(logits: Floats, temperature: float, chance: np.random.Generator) -> int:
    """By the Gumbel trick: the greatest of the logits with noise on them."""
    if temperature == 0:
        return int(logits.argmax())
    noise = chance.gumbel(size=logits.shape)
    return int((logits / temperature + noise).argmax())


def _key(prompt: str, text: str) -> str:
    """Texts that differ in white space alone are one."""
    words: Sequence[str] = (prompt + " " + text).split()
    return hashlib.sha256(" ".join(words).encode()).hexdigest()
