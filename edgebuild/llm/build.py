"""The straight line for language models: from a checkpoint and a target to a proven bundle."""

from __future__ import annotations

import datetime
import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from edgebuild import generate
from edgebuild.generate import GOLDEN
from edgebuild.inputs.this_machine import available_memory
from edgebuild.llm.bundle import FILE, LOADER, PAGE, write_model
from edgebuild.llm.checkpoint import FLOAT_METHODS, Checkpoint
from edgebuild.llm.convert import refuse_other_content
from edgebuild.llm.forward import Forward
from edgebuild.llm.golden import record
from edgebuild.llm.mix import Mix
from edgebuild.llm.network import read_network
from edgebuild.llm.onnx import Onnx
from edgebuild.llm.packing import Job, Packer, Written
from edgebuild.llm.packing import Wanted as Wanted
from edgebuild.llm.plan import notes_on, option_of, plan
from edgebuild.llm.source import open_source
from edgebuild.llm.text import CONFIG, Tokenizer, open_tokenizer, read_text, write_beside
from edgebuild.llm.tflite import Tflite
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.errors import DoesNotFit, InputError, MissingPackage, did_you_mean
from edgebuild.vocabulary.fit import Fit, Loading, Option
from edgebuild.vocabulary.language_model import LanguageModel, Proof
from edgebuild.vocabulary.measurement import Evidence, Figure
from edgebuild.vocabulary.target import Target
from edgebuild.vocabulary.verdict import BudgetLine, Status, Verdict

PACKERS: Mapping[str, Packer] = {"onnx": Onnx(), "tflite": Tflite()}
# What an option is called whose matrices have bits of their own.
MIXED = "bits by matrix"
WITHOUT_TEXT = "no text was given: --text FILE calibrates with one half and proves with the other"


def build_model(
    path: Path,
    target: Target,
    out: Path,
    wanted: Wanted,
    progress: Progress,
    page: Callable[[LanguageModel], str] | None = None,
) -> LanguageModel:
    """Plans, packs, proves and records all that.

    `page` turns the record into the report.html that travels with it.

    Raises:
        DoesNotFit: too large for the target at any precision, or at the wanted one; or for this
            machine, where the format's converter needs the whole network in memory.
        InputError: a checkpoint, text or folder that cannot be used.
        NotExportable: a family that the format has no graph for.
        ParityLost: the packed model does not compute what the network does.
    """
    packer = _packer(wanted.format)
    source = open_source(path)
    packer.refuse(source, target, wanted)
    network = read_network(source)
    context = wanted.context_of(source.decoder)
    every = fit = plan(source.decoder, target, context, engine=packer.engine)
    if wanted.weights:
        fit = plan(source.decoder, target, context, wanted.weights, packer.engine)
    option = _fitting(fit)
    if not wanted.weights:
        # What was chosen is refused as if it had been asked for: before anything is touched.
        packer.refuse(source, target, replace(wanted, weights=Mix.parse(option.precision)))
    refuse_other_content(out, packer.own_files)
    with tempfile.TemporaryDirectory(prefix="edgebuild-") as name:
        scratch = Path(name)
        notes: list[str] = []
        tokenizer = _tokenizer(source, scratch, notes)
        text = read_text(wanted.text, tokenizer, path, context) if wanted.text else None
        # What an earlier build has recorded there is not about this one.
        for stale in (FILE, PAGE, CONFIG, GOLDEN):
            (out / stale).unlink(missing_ok=True)
        job = Job(Forward(source, network), option, wanted.limit, text, tokenizer)
        written = packer.pack(job, out, progress)
        for file in scratch.glob("*.json"):
            # What is left has settings of its own, which are there already.
            if not (written.reduction and file.name == CONFIG):
                shutil.copyfile(file, out / file.name)
    shutil.copyfile(generate.__file__, out / LOADER)
    proof = _proof(written, job, progress)
    _write_golden(out, job)
    if wanted.limit:
        engine = packer.engine
        option = option_of(written.decoder, target, written.chosen, MIXED, option, engine)
    model = LanguageModel(
        edgebuild=importlib.metadata.version("edgebuild"),
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        name=source.decoder.name,
        family=source.decoder.family,
        source=path.name,
        dtypes=tuple(sorted({each.dtype for each in source.tensors.values()})),
        target=target.name,
        context=option.context,
        cache=option.cache,
        parameters=written.decoder.parameters,
        layouts=written.layouts,
        matrices=written.matrices,
        scales=written.scales,
        weights_bytes=written.size,
        read_bytes=written.read,
        option=option,
        options=every.options,
        room=fit.room,
        verdict=_verdict(option, fit, target),
        notes=(*notes_on(target, option), *notes, *written.notes),
        versions={each: importlib.metadata.version(each) for each in packer.packages},
        proof=proof,
        unproven="" if proof else _unproven(source),
        format=wanted.format,
        minimum_runtime=written.minimum_runtime,
        kernels=written.kernels,
        removed=written.reduction.removed,
        ranks=written.ranks,
        narrowed={layer: len(kept) for layer, kept in written.reduction.channels.items()},
    )
    if page:
        (out / PAGE).write_text(page(model), encoding="utf-8")
    return write_model(out, model)


def _packer(name: str) -> Packer:
    if name not in PACKERS:
        raise InputError(
            f"language models are built as {' or '.join(PACKERS)}, not as {name!r}."
            f"{did_you_mean(name, PACKERS)}"
        )
    return PACKERS[name]


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


def _proof(written: Written, job: Job, progress: Progress) -> Proof | None:
    if job.text is None or job.checkpoint.method not in FLOAT_METHODS:
        return None
    proof = written.prove(job.text, progress)
    answer = job.tokenizer.text(proof.answer) if job.tokenizer else ""
    return replace(proof, answer_text=answer)


def _write_golden(out: Path, job: Job) -> None:
    """What `verify` replays; only a text's proof has shown that this machine can hold the model."""
    if job.text is not None:
        record(out, job.text.proving[0].tolist())
    elif job.option.needs.total <= available_memory():
        record(out)


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
    status = Status.PREDICTED if option.fits else Status.BREACHED
    line = BudgetLine("memory", float(fit.room.total), figure, status)
    return Verdict((line,))
