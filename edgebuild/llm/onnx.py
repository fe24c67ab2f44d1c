"""Packs a language model for onnxruntime: streamed weights, and a graph around them."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

from edgebuild.generate import GRAPH
from edgebuild.llm.calibrate import Seen, calibrate, save_importances
from edgebuild.llm.checkpoint import FLOAT_METHODS, Checkpoint
from edgebuild.llm.chosen import Chosen, choose_on_text, left_of, refuse_hopeless
from edgebuild.llm.convert import OWN_FILES, convert
from edgebuild.llm.engines import ONNXRUNTIME, Engine
from edgebuild.llm.genai import FILE as GENAI
from edgebuild.llm.genai import genai_config
from edgebuild.llm.graph import HALVES, CacheFormat, decoder_graph, write_graph
from edgebuild.llm.importance import Importances, choose_importances
from edgebuild.llm.limit import Limit
from edgebuild.llm.matrices import stored_matrices
from edgebuild.llm.mix import Mix
from edgebuild.llm.mixed import choose
from edgebuild.llm.network import Network, read_network
from edgebuild.llm.packing import Job, Wanted, Written
from edgebuild.llm.proof import prove
from edgebuild.llm.save import write_settings
from edgebuild.llm.sites import survey
from edgebuild.llm.store import SCHEMA, Index, lay_out
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.decoder import Role
from edgebuild.vocabulary.errors import InputError, NotExportable
from edgebuild.vocabulary.fit import Option
from edgebuild.vocabulary.target import Target
from edgebuild.vocabulary.units import Bytes

LARGEST, PLAIN = Mix.parse("int4-g16-asym"), Mix.parse("fp16")
# Stretches of the text that tell what errors cost: each is run some thirty times.
MEASURED = 1
# Elements of a head that onnxruntime's attention can turn.
HEAD_MULTIPLE = 16


@dataclass(frozen=True)
class Onnx:
    """The ONNX format."""

    engine: ClassVar[Engine] = ONNXRUNTIME
    packages: ClassVar[Sequence[str]] = ("onnxruntime", "onnx", "numpy", "tokenizers")
    own_files: ClassVar[Sequence[str]] = OWN_FILES

    def refuse(self, source: Checkpoint, target: Target, wanted: Wanted) -> None:
        """Heads that the graph cannot turn, and hopeless limits.

        What cannot be converted is told as it is read.
        """
        network = read_network(source)
        _refuse_odd_heads(network)
        if wanted.limit:
            context = wanted.context_of(source.decoder)
            refuse_hopeless(source.decoder, _limit(wanted.limit, network, context, HALVES))

    def pack(self, job: Job, out: Path, progress: Progress) -> Written:
        seen = _seen(job, progress)
        cache = _cache(job.option, seen)
        out.parent.mkdir(parents=True, exist_ok=True)
        # Beside the bundle: factors may be too large for /tmp.
        with tempfile.TemporaryDirectory(prefix=".edgebuild-", dir=out.parent) as scratch:
            importances = _importances(job.checkpoint, seen, Path(scratch))
            whole, chosen = job.forward, _chosen(job, importances, seen, cache, progress)
            if seen and chosen.changes_network:
                left, chosen = left_of(whole, chosen, seen, Path(scratch) / "factors")
                job = replace(job, forward=left)
                # What is left sees something else.
                seen = _seen(job, progress)
                cache = _cache(job.option, seen)
                importances = _importances(job.checkpoint, seen, Path(scratch))
            searched = importances if seen else None
            done = convert(job.checkpoint, out, chosen.layouts, progress, searched)
        if chosen.reduction:
            write_settings(job.checkpoint.settings, out)
        network, context, index = job.forward.network, job.option.context, done.index
        write_graph(decoder_graph(network, index, context, cache), out / GRAPH)
        first, stops = (job.tokenizer.first, job.tokenizer.stops) if job.tokenizer else (None, ())
        (out / GENAI).write_bytes(genai_config(network, context, first, stops))
        stored = {entry.name: entry.layout for entry in index.entries}
        return Written(
            decoder=job.checkpoint.decoder,
            chosen=chosen.layouts,
            layouts=Counter(str(layout) for layout in stored.values()),
            matrices=stored_matrices(job.checkpoint.decoder, stored, chosen.costs),
            scales=job.text.name if job.text and seen else "extremes",
            size=Bytes(index.size),
            read=_read(index),
            prove=partial(prove, whole, network, index, out, cache),
            reduction=chosen.reduction,
            ranks=chosen.ranks,
            notes=tuple(_notes(chosen, whole.network)),
        )


def _refuse_odd_heads(network: Network) -> None:
    """onnxruntime would say so at the first token."""
    if network.head % HEAD_MULTIPLE:
        raise NotExportable(
            f"onnx: {network.decoder.name} has heads of {network.head}: onnxruntime's "
            f"GroupQueryAttention turns heads of multiples of {HEAD_MULTIPLE} alone. `edgebuild "
            "convert` rounds the weights without a graph"
        )


def _seen(job: Job, progress: Progress) -> Seen | None:
    if job.text is None or job.checkpoint.method not in FLOAT_METHODS:
        return None
    return calibrate(job.forward, job.text.calibrating, progress)


def _cache(option: Option, seen: Seen | None) -> CacheFormat:
    if option.cache == "fp16":
        return HALVES
    if seen is None:
        raise InputError(
            f"{option.model} fits only with a KV cache of eight bits, whose scales must be "
            "measured: give a --text, or a shorter --context"
        )
    return CacheFormat(seen.cache_scales)


def _importances(source: Checkpoint, seen: Seen | None, scratch: Path) -> Importances:
    if seen is None:
        return Importances(source)
    return choose_importances(source, save_importances(seen, scratch / "importances.safetensors"))


def _chosen(
    job: Job,
    importances: Importances,
    seen: Seen | None,
    cache: CacheFormat,
    progress: Progress,
) -> Chosen:
    if job.limit is None:
        return Chosen(Mix.parse(job.option.precision))
    limit = _limit(job.limit, job.forward.network, job.option.context, cache)
    if job.text is None or seen is None:
        chosen = Chosen(choose(survey(job.checkpoint, importances, progress), limit))
    else:
        some = job.text.calibrating[:MEASURED]
        chosen = choose_on_text(job.forward, some, limit, importances, seen, progress)
    progress.say(f"chosen: {chosen.layouts}")
    return chosen


def _limit(size: Bytes, network: Network, context: int, cache: CacheFormat) -> Limit:
    """Of both files: the graph's tables of positions are no small part of a small network."""
    decoder = network.decoder
    found = Limit.of(decoder, size)
    # Of all layouts the one with the most arrays, where the embedding can have it.
    entries = lay_out(decoder, LARGEST if decoder.hidden % LARGEST.body.block == 0 else PLAIN)
    index = Index(SCHEMA, decoder.name, decoder.family, "", entries)
    graph = decoder_graph(network, index, context, cache).ByteSize()
    return replace(found, apart=Bytes(found.apart + graph))


def _notes(chosen: Chosen, whole: Network) -> Iterator[str]:
    reduction = chosen.reduction
    if chosen.changes_network:
        yield (
            "for so few bytes, the text loses less by taking something out than by fewer bits for "
            "all; in these notes layers are counted from 0 as in the checkpoint, in the list of "
            "matrices as they are left"
        )
    if reduction.removed:
        named, count = ", ".join(map(str, reduction.removed)), len(whole.layers)
        yield f"{len(reduction.removed)} of {count} layers are left out: {named}"
    widths: dict[int, list[int]] = {}
    for layer, channels in sorted(reduction.channels.items()):
        widths.setdefault(len(channels), []).append(layer)
    for width, layers in widths.items():
        named = ", ".join(map(str, layers))
        yield f"{width} channels are left of the feed-forward parts of layers {named}"
    if chosen.ranks:
        yield (
            f"{len(chosen.ranks)} matrices are stored as two thin ones, of ranks from "
            f"{min(chosen.ranks.values())} to {max(chosen.ranks.values())}"
        )


def _read(index: Index) -> Bytes:
    """What one token reads of the weights; of an embedding it reads a row."""
    entries = [entry for entry in index.entries if entry.role is not Role.EMBEDDING]
    return Bytes(sum(entry.layout.size(entry.rows, entry.inputs) for entry in entries))
