"""The straight line for language models: from a checkpoint and a target to a proven bundle."""

from __future__ import annotations

import datetime
import importlib.metadata
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgebuild import generate
from edgebuild.llm.bundle import LOADER, PAGE, write_model
from edgebuild.llm.calibrate import Seen, calibrate, save_importances
from edgebuild.llm.checkpoint import FLOAT_METHODS, Checkpoint
from edgebuild.llm.convert import convert, refuse_other_content
from edgebuild.llm.forward import Forward
from edgebuild.llm.genai import FILE as GENAI
from edgebuild.llm.genai import genai_config
from edgebuild.llm.graph import HALVES, CacheFormat, decoder_graph, write_graph
from edgebuild.llm.importance import Importances, choose_importances
from edgebuild.llm.matrices import Costs, stored_matrices
from edgebuild.llm.mix import Layouts, Mix
from edgebuild.llm.mixed import Limit, choose, survey, weighed
from edgebuild.llm.network import read_network
from edgebuild.llm.plan import plan
from edgebuild.llm.proof import prove
from edgebuild.llm.sensitivity import sensitivities
from edgebuild.llm.source import open_source
from edgebuild.llm.store import Index
from edgebuild.llm.text import Text, Tokenizer, open_tokenizer, read_text, write_beside
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.decoder import Role
from edgebuild.vocabulary.errors import DoesNotFit, InputError, MissingPackage
from edgebuild.vocabulary.fit import Fit, Loading, Option
from edgebuild.vocabulary.language_model import LanguageModel, Proof
from edgebuild.vocabulary.measurement import Evidence, Figure
from edgebuild.vocabulary.target import Target
from edgebuild.vocabulary.units import Bytes
from edgebuild.vocabulary.verdict import BudgetLine, Status, Verdict

WITHOUT_TEXT = "no text was given: --text FILE calibrates with one half and proves with the other"
# Stretches of the text that tell what errors cost: each is run some thirty times.
MEASURED = 1
PACKAGES = ("onnxruntime", "onnx", "numpy", "tokenizers")


@dataclass(frozen=True)
class Wanted:
    """What is asked of a bundle.

    Attributes:
        context: tokens that the cache holds.
        weights: a precision; the most precise that fits unless given.
        limit: bytes of the file, within which every matrix gets its own bits.
        text: what to calibrate and to prove with.
    """

    context: int = 4096
    weights: Mix | None = None
    limit: Bytes | None = None
    text: Path | None = None


def build_model(
    path: Path,
    target: Target,
    out: Path,
    wanted: Wanted,
    progress: Progress,
    page: Callable[[LanguageModel], str] | None = None,
) -> LanguageModel:
    """Plans, calibrates, converts, writes the graph, proves it and records all that.

    `page` turns the record into the report.html that travels with it.

    Raises:
        DoesNotFit: too large for the target at any precision; or at the wanted one.
        InputError: a checkpoint, text or folder that cannot be used.
        NotExportable: a family that no graph is made of.
        ParityLost: the packed model does not compute what the network does.
    """
    source = open_source(path)
    network = read_network(source)
    fit = plan(source.decoder, target, wanted.context, wanted.weights)
    option = _fitting(fit)
    refuse_other_content(out)
    with tempfile.TemporaryDirectory(prefix="edgebuild-") as name:
        scratch = Path(name)
        notes = list(fit.notes)
        tokenizer = _tokenizer(source, scratch, notes)
        text = read_text(wanted.text, tokenizer, path, wanted.context) if wanted.text else None
        forward = Forward(source, network)
        seen = _seen(forward, text, progress)
        cache = _cache(option, seen)
        importances = (
            choose_importances(source, save_importances(seen, scratch / "importances.safetensors"))
            if seen
            else Importances(source)
        )
        layouts, costs = _layouts(forward, option, wanted, importances, text, progress)
        done = convert(source, out, layouts, progress, importances if seen else None)
        for file in scratch.glob("*.json"):
            shutil.copyfile(file, out / file.name)
    context = option.context
    write_graph(decoder_graph(network, done.index, context, cache), out / generate.GRAPH)
    shutil.copyfile(generate.__file__, out / LOADER)
    first, stops = (tokenizer.first, tokenizer.stops) if tokenizer else (None, ())
    (out / GENAI).write_bytes(genai_config(network, context, first, stops))
    proof = _proof(forward, done.index, out, cache, text, tokenizer, progress)
    model = LanguageModel(
        edgebuild=importlib.metadata.version("edgebuild"),
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        name=source.decoder.name,
        family=source.decoder.family,
        source=path.name,
        dtypes=tuple(sorted({each.dtype for each in source.tensors.values()})),
        target=target.name,
        context=context,
        cache=option.cache,
        parameters=fit.parameters,
        layouts=Counter(str(entry.layout) for entry in done.index.entries),
        matrices=stored_matrices(source.decoder, done.index, costs),
        scales=text.name if text and seen else "extremes",
        weights_bytes=Bytes(done.index.size),
        read_bytes=_read(done.index),
        option=option,
        options=plan(source.decoder, target, wanted.context).options,
        room=fit.room,
        verdict=_verdict(option, fit, target),
        notes=tuple(notes),
        versions={each: importlib.metadata.version(each) for each in PACKAGES},
        proof=proof,
        unproven="" if proof else _unproven(source),
    )
    # What another build has left there is not about this one.
    (out / PAGE).unlink(missing_ok=True)
    if page:
        (out / PAGE).write_text(page(model), encoding="utf-8")
    return write_model(out, model)


def _fitting(fit: Fit) -> Option:
    if fit.chosen:
        return fit.chosen
    nearest = "; ".join(
        f"with {each.change}, {each.option.model} at {each.option.precision} fits with "
        f"{each.option.context} tokens"
        for each in fit.nearest
    )
    raise DoesNotFit(f"{fit.model} does not fit: {fit.refusal}. {nearest or 'Nothing known fits'}")


def _tokenizer(source: Checkpoint, scratch: Path, notes: list[str]) -> Tokenizer | None:
    """The checkpoint's own; where there is none, the notes say so."""
    if source.path.is_dir():
        found = open_tokenizer(source.path)
        if found is None:
            notes.append("the checkpoint has no tokenizer.json: chat and genai need one")
        return found
    try:
        write_beside(source, scratch)
    except MissingPackage as missing:
        notes.append(str(missing))
        return None
    return open_tokenizer(scratch)


def _seen(forward: Forward, text: Text | None, progress: Progress) -> Seen | None:
    if text is None or forward.checkpoint.method not in FLOAT_METHODS:
        return None
    return calibrate(forward, text.calibrating, progress)


def _cache(option: Option, seen: Seen | None) -> CacheFormat:
    if option.cache == "fp16":
        return HALVES
    if seen is None:
        raise InputError(
            f"{option.model} fits only with a KV cache of eight bits, whose scales must be "
            "measured: give a --text, or a shorter --context"
        )
    return CacheFormat(seen.cache_scales)


def _layouts(
    forward: Forward,
    option: Option,
    wanted: Wanted,
    importances: Importances,
    text: Text | None,
    progress: Progress,
) -> tuple[Layouts, Costs]:
    if wanted.limit is None:
        return Mix.parse(option.precision), Costs()
    sites = survey(forward.checkpoint, importances, progress)
    found: Mapping[str, float] = {}
    if text:
        some = text.calibrating[:MEASURED]
        found = sensitivities(forward, sites, some, progress)
        sites = weighed(sites, found)
    mixed = choose(sites, wanted.limit, Limit.STORED)
    progress.say(f"chosen: {mixed}")
    return mixed, Costs(found, mixed.losses if found else {})


def _proof(
    forward: Forward,
    index: Index,
    out: Path,
    cache: CacheFormat,
    text: Text | None,
    tokenizer: Tokenizer | None,
    progress: Progress,
) -> Proof | None:
    if text is None or forward.checkpoint.method not in FLOAT_METHODS:
        return None
    proof = prove(forward, index, out, cache, text.name, text.proving, progress)
    return replace(proof, answer_text=tokenizer.text(proof.answer)) if tokenizer else proof


def _read(index: Index) -> Bytes:
    """What one token reads of the weights; of an embedding it reads a row."""
    entries = [entry for entry in index.entries if entry.role is not Role.EMBEDDING]
    return Bytes(sum(entry.layout.size(entry.rows, entry.inputs) for entry in entries))


def _unproven(source: Checkpoint) -> str:
    if source.method in FLOAT_METHODS:
        return WITHOUT_TEXT
    return f"the checkpoint was quantized by {source.method}: there are no floats to compare with"


def _verdict(option: Option, fit: Fit, target: Target) -> Verdict:
    """Memory alone: what the target says of time, a phone must show."""
    needs = option.needs
    how = "weights prepacked and mapped" if needs.loading is Loading.MAPPED else "weights repacked"
    figure = Figure(
        float(needs.total), Evidence.PREDICTED, target.name, note=f"by arithmetic; {how}"
    )
    line = BudgetLine("memory", float(fit.room.total), figure, Status.PREDICTED)
    return Verdict((line,))
