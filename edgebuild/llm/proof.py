"""Compares what was made of a network with the float network itself, on text that no choice saw."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgebuild.generate import CHUNK, Decoder, LiteDecoder, continued
from edgebuild.llm._kernels_numpy import Floats
from edgebuild.llm.forward import Forward, divergence, in_chunks, log_softmax
from edgebuild.llm.graph import CacheFormat, Logits, decoder_graph, write_graph
from edgebuild.llm.network import Network
from edgebuild.llm.sequences import Tokens
from edgebuild.llm.store import Index
from edgebuild.llm.text import Text
from edgebuild.runner import machine
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.errors import ParityLost
from edgebuild.vocabulary.language_model import Proof

GRAPH = "proof.onnx"
# A graph that computes something else is wrong by more than any rounding of eight bits.
MOST_KL = 10.0
# Tokens of the one answer that is written down.
ANSWER = 32


class Reader(Protocol):
    """Reads tokens, and gives the logits [tokens, vocabulary] of what comes after each."""

    def forget(self) -> None:
        """Begins anew."""

    def read(self, tokens: Sequence[int], /) -> Any: ...


@dataclass(frozen=True)
class EachToken:
    """Asks after every token, where a file gives the logits of the last one alone.

    What was read so is read once more as a prompt, and what follows stands on that: so both of the
    file's signatures are compared.
    """

    decoder: LiteDecoder

    def forget(self) -> None:
        self.decoder.forget()

    def read(self, tokens: Sequence[int], /) -> Any:
        begun = self.decoder.length
        found = np.concatenate([self.decoder.read([token]) for token in tokens])
        if len(tokens) > 1:
            self.decoder.length = begun
            self.decoder.prefill(tokens)
        return found


def prove(
    forward: Forward,
    packed: Network,
    index: Index,
    folder: Path,
    cache: CacheFormat,
    text: Text,
    progress: Progress,
) -> Proof:
    """Runs both on the same tokens, chunk by chunk; `packed` may have fewer layers.

    Raises:
        ParityLost: outputs that are not finite, or of another network.
    """
    states = forward.states(text.proving, progress)
    file = folder / GRAPH
    length = text.proving.shape[1] + ANSWER
    write_graph(decoder_graph(packed, index, length, cache, Logits.ALL), file)
    try:
        decoder = Decoder(str(file))
        return compare(decoder, forward, text.name, text.proving, states, progress)
    finally:
        file.unlink(missing_ok=True)


def compare(
    decoder: Reader,
    forward: Forward,
    text: str,
    sequences: Tokens,
    states: Floats,
    progress: Progress,
) -> Proof:
    """What a packed model gives, against the states of the float network.

    Raises:
        ParityLost: outputs that are not finite, or of another network.
    """
    found: list[Floats] = []
    with progress.step("compare with the float network", len(sequences)) as bar:
        for sequence, own in zip(sequences, states, strict=True):
            decoder.forget()
            found += _compared(forward, sequence, own, partial(_read, decoder, sequence))
            bar.advance()
    decoder.forget()
    prompt = sequences[0][: len(sequences[0]) // 2].tolist()
    answer = continued(decoder, prompt, ANSWER)
    proof = _summed(text, np.concatenate(found), len(sequences[0]), answer)
    if not math.isfinite(proof.kl) or proof.kl > MOST_KL:
        raise ParityLost(
            f"the packed model is not the network: {proof.kl:.3g} nats from it on {text}"
        )
    return proof


def distance(
    other: Forward,
    forward: Forward,
    text: str,
    sequences: Tokens,
    states: Floats,
    progress: Progress,
) -> Proof:
    """What another network in floats gives, against the states of the float network."""
    found: list[Floats] = []
    own = other.states(sequences, progress)
    for sequence, theirs, mine in zip(sequences, states, own, strict=True):
        found += _compared(forward, sequence, theirs, partial(_logits, other, mine))
    return _summed(text, np.concatenate(found), len(sequences[0]), ())


def _compared(
    forward: Forward, sequence: Tokens, states: Floats, answers: Callable[[slice], Floats]
) -> Iterator[Floats]:
    """`answers` are the other's logits [tokens, vocabulary], asked for in order."""
    for some in in_chunks(len(sequence), CHUNK):
        wanted = log_softmax(forward.logits(states[some]))
        got = log_softmax(answers(some))
        yield _by_token(wanted, got, sequence[some.start + 1 : some.stop + 1])


def _read(decoder: Reader, sequence: Tokens, some: slice) -> Floats:
    logits: Floats = decoder.read(sequence[some].tolist()).astype(np.float32)
    return logits


def _logits(other: Forward, states: Floats, some: slice) -> Floats:
    return other.logits(states[some])


def _by_token(wanted: Floats, got: Floats, coming: Tokens) -> Floats:
    """Of each token: divergence, agreement, and both surprises by the token that came."""
    places = np.arange(len(coming))
    surprises = np.full((2, len(wanted)), np.nan, np.float32)
    for row, expected in zip(surprises, (wanted, got), strict=True):
        row[: len(coming)] = -expected[places, coming]
    kl = divergence(wanted, got)
    agrees = wanted.argmax(axis=-1) == got.argmax(axis=-1)
    return np.stack([kl, agrees, *surprises], axis=1)


def _summed(text: str, tokens: Floats, longest: int, answer: Sequence[int]) -> Proof:
    kl, agrees = tokens[:, 0], tokens[:, 1]
    wanted, got = (float(np.nanmean(tokens[:, n], dtype=np.float64)) for n in (2, 3))
    return Proof(
        text=text,
        tokens=len(tokens),
        longest=longest,
        kl=float(kl.mean(dtype=np.float64)),
        kl_worst=float(kl.max()),
        agreement=float(agrees.mean(dtype=np.float64)),
        perplexity=math.exp(got),
        float_perplexity=math.exp(wanted),
        answer=tuple(answer),
        where=f"host ({machine()})",
    )
