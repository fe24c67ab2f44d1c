"""Packs a language model for LiteRT: litert-torch's generative export, checked by its census."""

from __future__ import annotations

import importlib.util
import mmap
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from packaging.version import Version

from edgebuild.generate import LITE, LiteDecoder
from edgebuild.inputs.this_machine import available_memory
from edgebuild.llm import _tflite_export
from edgebuild.llm._tflite_census import TfliteMatrix, read_matrices
from edgebuild.llm._tflite_kernels import kernels_of_layers
from edgebuild.llm.checkpoint import Checkpoint
from edgebuild.llm.engines import CHUNK, FLOAT, LITERT, Engine
from edgebuild.llm.matrices import Costs, Stored, stored_matrices
from edgebuild.llm.mix import Mix
from edgebuild.llm.packing import Job, Wanted, Written
from edgebuild.llm.proof import ANSWER, EachToken, compare
from edgebuild.llm.save import copy_beside, write_floats
from edgebuild.llm.text import TOKENIZER, Text
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.decoder import Decoder, Role
from edgebuild.vocabulary.errors import (
    DoesNotFit,
    InputError,
    InvalidCheckpoint,
    MissingPackage,
    NotExportable,
    ParityLost,
    PrecisionRefused,
)
from edgebuild.vocabulary.language_model import Proof
from edgebuild.vocabulary.target import Target
from edgebuild.vocabulary.units import Bytes, format_size

# Families that were exported in floats and compared with transformers, token by token, through both
# signatures.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
# The file that LiteRT-LM runs: the same network, with its tokenizer.
BUNDLE = "model.litertlm"
# One file each was run on 1.4.0, 2.0.2, 2.0.3, 2.1.0, 2.1.6, 2.2.0 and 2.3.0: floats are right on
# all, blocks of four bits from 2.1.0 on; older releases compute noise, and say nothing.
SINCE_BLOCKS = {"ai-edge-litert": "2.1.0"}
SINCE_FLOATS = {"ai-edge-litert": "1.4.0"}
# What an export holds at its peak: libraries, copies of the weights in floats, and a cache for each
# signature. Networks of .2, 134 and 438 MB in floats took .77, 1.18 and 2.02 GB.
LIBRARIES, COPIES, CACHES = Bytes(800_000_000), 3, 2
# Half a stretch of text as a prompt, and the answer to it.
SHORTEST = 2 * ANSWER
STREAMED = "leave --format out: the ONNX route streams the weights, whatever their size"


@dataclass(frozen=True)
class Tflite:
    """The TFLite format, with a .litertlm beside it."""

    engine: ClassVar[Engine] = LITERT
    packages: ClassVar[Sequence[str]] = (
        *("ai-edge-litert", "litert-torch", "ai-edge-quantizer", "transformers", "numpy"),
        "tokenizers",
    )
    own_files: ClassVar[Sequence[str]] = (LITE,)

    def refuse(self, source: Checkpoint, target: Target, wanted: Wanted) -> None:
        """Families, checkpoints, precisions and machines that the export is not for.

        Raises:
            NotExportable: a family that was never seen to come out right.
            InputError: a checkpoint that litert-torch does not read, or an option of no use.
            PrecisionRefused: a precision without a kernel, or a runtime that computes it wrongly.
            DoesNotFit: this machine has too little memory for the export.
        """
        _refuse_source(source)
        if wanted.limit is not None:
            raise InputError(
                "--storage gives every matrix its own bits, which litert-torch's export cannot: "
                "give --weights, or leave --format out"
            )
        context = wanted.context_of(source.decoder)
        if context < SHORTEST:
            raise InputError(
                f"--context {context} is too short for a proof: give {SHORTEST} at least"
            )
        refuse_small_memory(source.decoder, context, available_memory())
        if wanted.weights:
            _refuse_precision(source.decoder, wanted.weights)
            _refuse_old_runtime(target, _since(wanted.weights))

    def pack(self, job: Job, out: Path, progress: Progress) -> Written:
        mix = Mix.parse(job.option.precision)
        out.parent.mkdir(parents=True, exist_ok=True)
        # Beside the bundle: files of this size are not for /tmp, and are moved, not copied.
        with tempfile.TemporaryDirectory(prefix=".edgebuild-", dir=out.parent) as scratch:
            made = _exported(job, Path(scratch), progress)
            matrices = read_matrices(made)
            _refuse_other_storage(matrices, mix, job.checkpoint.decoder)
            _refuse_other_network(made, made.with_name(BUNDLE))
            kernels = kernels_of_layers(made, Path(scratch), integers=not mix.body.is_float)
            out.mkdir(exist_ok=True)
            os.replace(made, out / LITE)
            os.replace(made.with_name(BUNDLE), out / BUNDLE)
        copy_beside(job.checkpoint.path, out)
        unique = {each.number: each for each in matrices}
        return Written(
            decoder=job.checkpoint.decoder,
            chosen=mix,
            layouts=Counter(each.layout for each in unique.values()),
            matrices=stored_matrices(job.checkpoint.decoder, _uniform(mix, job), Costs()),
            scales="extremes" if mix.body.is_float else "least squared error",
            size=Bytes((out / LITE).stat().st_size),
            read=_read(matrices),
            prove=partial(_prove, job, out),
            minimum_runtime=_since(mix),
            kernels=kernels,
            notes=(
                f"{BUNDLE} holds the same network for LiteRT-LM; run.py runs {LITE}, and memory is "
                f"that of run.py, which holds the cache {LITERT.copies} times",
            ),
        )


def refuse_small_memory(decoder: Decoder, context: int, available: Bytes) -> None:
    """litert-torch holds a network in floats, more than once.

    Raises:
        DoesNotFit: the export's peak, by arithmetic, is more than there is.
    """
    weights, cache = decoder.parameters * FLOAT, decoder.cached * context * FLOAT
    needed = Bytes(round(LIBRARIES + COPIES * weights + CACHES * cache))
    if needed > available:
        raise DoesNotFit(
            f"the export of {decoder.name} to LiteRT needs {format_size(LIBRARIES)} of libraries + "
            f"{COPIES} × {format_size(weights)} of weights in floats + {CACHES} × "
            f"{format_size(cache)} for a cache of {context} tokens = {format_size(needed)}; "
            f"{format_size(available)} are free on this machine: take a larger machine, or a "
            f"smaller model, or {STREAMED}"
        )


def _refuse_source(source: Checkpoint) -> None:
    where, family = source.path, source.decoder.family
    if family not in FAMILIES:
        raise NotExportable(
            f"{where}: {family} was not seen to come out of litert-torch right; known are "
            f"{', '.join(FAMILIES)}. Else {STREAMED}"
        )
    if source.method:
        raise InvalidCheckpoint(
            f"{where} is quantized by {source.method}: litert-torch takes floats alone. Give those "
            "that it was made from, or leave --format out"
        )
    if not source.tensors:
        raise InvalidCheckpoint(f"{where} has no weights: *.safetensors is missing")
    if where.is_dir() and not (where / TOKENIZER).is_file():
        raise InvalidCheckpoint(
            f"{where} has no {TOKENIZER}, which goes into {BUNDLE}: save the tokenizer there with "
            "save_pretrained"
        )
    if importlib.util.find_spec("transformers") is None:
        raise MissingPackage(
            "litert-torch reads checkpoints with transformers: pip install 'edgebuild[hf]'"
        )


def _refuse_precision(decoder: Decoder, mix: Mix) -> None:
    if mix not in LITERT.mixes:
        raise PrecisionRefused(
            f"tflite: {mix} has no kernels there: all matrices are alike, floats or four bits in "
            f"blocks: {', '.join(map(str, LITERT.mixes))}"
        )
    block = mix.body.block
    for weights in decoder.weights:
        is_matrix = weights.role in (Role.MATRIX, Role.EMBEDDING, Role.HEAD)
        if block and is_matrix and weights.inputs % block:
            raise PrecisionRefused(
                f"tflite: {mix}: {weights.name} has {weights.inputs} columns, which are no whole "
                f"blocks of {block}, and would stay floats: give a smaller block, or "
                "--weights fp32"
            )


def _refuse_old_runtime(target: Target, oldest: Mapping[str, str]) -> None:
    ((package, needed),) = oldest.items()
    for runtime in target.runtimes:
        # "2.3.0", or "tflite-runtime 2.14.0" for another package.
        other, _, release = runtime.version.rpartition(" ")
        if runtime.name == "litert" and (other or Version(release) < Version(needed)):
            raise PrecisionRefused(
                f"{target.name} has {other or package} {release}, which computes this wrongly and "
                f"says nothing: it needs {package} {needed} or newer"
            )


def _since(mix: Mix) -> Mapping[str, str]:
    return SINCE_FLOATS if mix.body.is_float else SINCE_BLOCKS


def _exported(job: Job, scratch: Path, progress: Progress) -> Path:
    """The .tflite that litert-torch writes, with the .litertlm beside it."""
    context, block = job.option.context, Mix.parse(job.option.precision).body.block
    words = [sys.executable, _tflite_export.__file__]
    for word in (_folder(job.checkpoint, scratch), scratch, min(CHUNK, context), context, block):
        words.append(str(word))
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    with progress.step("export by litert-torch", 1) as bar:
        done = subprocess.run(
            words, env={**os.environ, **offline}, capture_output=True, text=True, check=False
        )
        bar.advance()
    if done.returncode < 0:
        raise NotExportable(
            f"tflite: litert-torch was ended by signal {-done.returncode}; of signal 9, memory is "
            f"the usual reason: {STREAMED}"
        )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise NotExportable(f"tflite: litert-torch cannot export it: {reason}; {STREAMED}")
    return scratch / ("model_quantized.tflite" if block else "model.tflite")


def _uniform(mix: Mix, job: Job) -> Stored:
    """How every tensor is stored, which the census has found to be so."""
    decoder = job.checkpoint.decoder
    return {name: mix.of(each) for each in decoder.weights for name, _ in each.names()}


def _folder(checkpoint: Checkpoint, scratch: Path) -> Path:
    """Where litert-torch finds it: a GGUF file is written out as the floats that it means."""
    if checkpoint.path.is_dir():
        return checkpoint.path.resolve()
    folder = scratch / "floats"
    folder.mkdir()
    write_floats(checkpoint, folder)
    return folder


def _refuse_other_storage(matrices: Sequence[TfliteMatrix], mix: Mix, decoder: Decoder) -> None:
    """No matrix may be missing, or be stored as something else than was asked for."""
    other = [each for each in matrices if each.layout != str(mix.body)]
    if other:
        raise PrecisionRefused(
            f"tflite: {len(other)} of {len(matrices)} matrices are not stored as {mix}, the first "
            f"in {other[0].subgraph}: {other[0].name} as {other[0].layout}"
        )
    # A head that is the embedding is read by two operators.
    expected = sum(each.read for each in decoder.weights if each.role is not Role.VECTOR) + 1
    found = sum(each.subgraph == "decode" for each in matrices)
    if found != expected:
        raise PrecisionRefused(f"tflite: decode reads {found} matrices, the network {expected}")


def _refuse_other_network(file: Path, bundle: Path) -> None:
    """What was proven must be what LiteRT-LM runs: the same bytes are in its file."""
    size, step = file.stat().st_size, 2**24
    with (
        file.open("rb") as one,
        bundle.open("rb") as other,
        mmap.mmap(one.fileno(), 0, access=mmap.ACCESS_READ) as wanted,
        mmap.mmap(other.fileno(), 0, access=mmap.ACCESS_READ) as whole,
    ):
        at = whole.find(wanted[:4096])
        is_same = at >= 0 and all(
            wanted[n : n + step] == whole[at + n : at + min(n + step, size)]
            for n in range(0, size, step)
        )
    if not is_same:
        raise ParityLost(f"tflite: {bundle.name} does not hold the network of {file.name}")


def _read(matrices: Sequence[TfliteMatrix]) -> Bytes:
    """What one token reads of the weights; of an embedding it reads a row."""
    read = [each for each in matrices if each.subgraph == "decode" and not each.is_looked_up]
    return Bytes(sum(each.size for each in read))


def _prove(job: Job, out: Path, text: Text, progress: Progress) -> Proof:
    states = job.forward.states(text.proving, progress)
    decoder = EachToken(LiteDecoder(str(out / LITE)))
    return compare(decoder, job.forward, text.name, text.proving, states, progress)
