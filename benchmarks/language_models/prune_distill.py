"""Trains small language models, and asks: prune and distill before rounding, or round alone?

All systems keep the same limit of bytes, are rounded by the same means, and are compared with the
network that was trained, in the runtime, on text that nothing has seen. Each seed trains its own.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trained import BATCH, Scale, divided, train, write_tokenizer

from edgebuild.generate import Decoder
from edgebuild.llm._kernels_numpy import Floats
from edgebuild.llm.calibrate import calibrate, save_importances
from edgebuild.llm.convert import convert
from edgebuild.llm.corpus import read_corpus
from edgebuild.llm.forward import Forward
from edgebuild.llm.graph import Logits, decoder_graph, write_graph
from edgebuild.llm.importance import choose_importances
from edgebuild.llm.limit import Limit
from edgebuild.llm.mixed import choose
from edgebuild.llm.network import read_network
from edgebuild.llm.proof import compare
from edgebuild.llm.prune import Shares
from edgebuild.llm.recover import Effort
from edgebuild.llm.sensitivity import Reference, sensitivities
from edgebuild.llm.sequences import Tokens, sequences_of
from edgebuild.llm.shrink import shrink
from edgebuild.llm.sites import survey, weighed
from edgebuild.llm.source import open_source
from edgebuild.llm.store import Index, stored_size
from edgebuild.llm.text import STRETCH, open_tokenizer
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.language_model import Proof
from edgebuild.vocabulary.units import Bytes
from edgebuild.vocabulary.weight_format import WeightFormat

SEEDS = range(3)
# Stretches of the text that proves.
PROVING = 16
SHARES = Shares(ffn=0.5)
# How the limits are found: what these take, of the network and of what is left of it.
LIMIT = WeightFormat.parse("int4-g32-asym")

Row = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """A network in floats, what it makes of the text that proves, and the text that is learned."""

    forward: Forward
    proving: Tokens
    states: Floats
    learned: Path
    progress: Progress

    def proof(self, index: Index, network: Forward, folder: Path) -> Proof:
        """What a converted model gives in its runtime."""
        file = folder / "all.onnx"
        context = self.proving.shape[1] + STRETCH
        write_graph(decoder_graph(network.network, index, context, logits=Logits.ALL), file)
        decoder = Decoder(str(file))
        return compare(decoder, self.forward, "", self.proving, self.states, self.progress)


def shrinkages(
    text: Path, folder: Path, progress: Progress, scale: Scale | None = None
) -> Iterator[Row]:
    """For each seed: rounding alone; pruned before it; and with training, by text or by teacher."""
    scale = scale or Scale()
    learned, proving = divided(text, folder)
    write_tokenizer(learned, folder, scale)
    for seed in SEEDS:
        progress.say(f"shrink, seed {seed}")
        teacher = folder / f"teacher-{seed}"
        train(teacher, learned, scale, seed, progress)
        yield from _compared(teacher, learned, proving, scale, seed, progress)


def _compared(
    teacher: Path, learned: Path, proving: Path, scale: Scale, seed: int, progress: Progress
) -> Iterator[Row]:
    forward = _forward(teacher)
    tokenizer = open_tokenizer(teacher)
    assert tokenizer is not None
    tokens = tokenizer.tokens(proving.read_text(encoding="utf-8"))
    sequences = sequences_of(tokens, STRETCH, PROVING, None)
    states = forward.states(sequences, progress)
    comparison = Comparison(forward, sequences, states, learned, progress)
    ways: dict[str, Effort | None] = {
        "Q": None,
        "P → Q": Effort(steps=0, seed=seed),
        "P → text → Q": Effort(steps=scale.distilled, batch=BATCH, seed=seed, label_weight=1.0),
        "P → KD → Q": Effort(steps=scale.distilled, batch=BATCH, seed=seed),
    }
    folders, seconds = {}, {}
    for number, (system, effort) in enumerate(ways.items()):
        began = time.monotonic()
        folders[system] = teacher.with_name(f"{teacher.name}-{number}") if effort else teacher
        if effort:
            shrink(teacher, folders[system], learned, SHARES, effort, progress)
        seconds[system] = time.monotonic() - began
    limits = {
        f"what {LIMIT} takes of the pruned network": _bytes_at(LIMIT, folders["P → Q"]),
        f"what {LIMIT} takes of the whole network": _bytes_at(LIMIT, teacher),
    }
    rows: list[Row] = []
    for system, folder in folders.items():
        progress.say(f"shrink, seed {seed}: {system}")
        for row in _rounded(folder, limits, comparison):
            row["seconds"] += seconds[system]
            rows.append({"task": "shrink", "system": system, "seed": seed, **row})
    yield from sorted(rows, key=lambda row: int(row["limit"]))


def _rounded(folder: Path, limits: Mapping[str, Bytes], comparison: Comparison) -> Iterator[Row]:
    """As `build --storage --text` rounds: bits by matrix, scales by what was seen on the text."""
    began, progress = time.monotonic(), comparison.progress
    network = _forward(folder)
    source = network.checkpoint
    corpus = read_corpus(comparison.learned, open_tokenizer(folder), folder, STRETCH)
    seen = calibrate(network, corpus.calibrating, progress)
    kept = save_importances(seen, folder.with_name("seen.safetensors"))
    importances = choose_importances(source, kept)
    sites = survey(source, importances, progress, is_searched=True)
    reference = Reference(network, corpus.calibrating[:1])
    sites = weighed(sites, sensitivities(reference, importances, progress))
    seconds = time.monotonic() - began
    for name, limit in limits.items():
        began, out = time.monotonic(), folder.with_name("rounded")
        layouts = choose(sites, Limit(limit))
        index = convert(source, out, layouts, progress, importances).index
        spent = seconds + time.monotonic() - began
        proof = comparison.proof(index, network, out)
        shutil.rmtree(out)
        yield {
            **{"model": name, "limit": limit, "bytes": _weights(index), "kl": proof.kl},
            **{"top1": proof.agreement, "perplexity": proof.perplexity},
            **{"float_perplexity": proof.float_perplexity, "tokens": proof.tokens},
            **{"seconds": spent, "parameters": source.decoder.parameters},
        }


def _bytes_at(layout: WeightFormat, folder: Path) -> Bytes:
    weights = open_source(folder).decoder.weights
    matrices = [each for each in weights if len(each.shape) == 2]
    return Bytes(sum(stored_size(each, layout) * each.count for each in matrices))


def _forward(folder: Path) -> Forward:
    source = open_source(folder)
    return Forward(source, read_network(source))


def _weights(index: Index) -> int:
    """Bytes of the weights by themselves: pages of a file would hide the differences."""
    return sum(entry.layout.size(entry.rows, entry.inputs) for entry in index.entries)
