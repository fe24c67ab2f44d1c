"""What a network becomes, by us, by onnxruntime and by llama.cpp: how far from its floats."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import llama
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    HQQWeightOnlyQuantConfig,
    KQuantWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)
from peers import LLAMA, Peer, rows_of
from served import rounded, serving

from edgebuild.generate import Decoder
from edgebuild.llm._kernels_numpy import Floats
from edgebuild.llm.calibrate import calibrate, save_importances
from edgebuild.llm.checkpoint import Checkpoint
from edgebuild.llm.convert import convert
from edgebuild.llm.forward import Forward
from edgebuild.llm.graph import ACCURACY_LEVEL, Logits, decoder_graph, write_graph
from edgebuild.llm.importance import Importances, choose_importances
from edgebuild.llm.limit import Limit
from edgebuild.llm.mix import Layouts, Mix
from edgebuild.llm.mixed import choose
from edgebuild.llm.network import read_network
from edgebuild.llm.proof import compare
from edgebuild.llm.sensitivity import Reference, sensitivities
from edgebuild.llm.sites import survey, weighed
from edgebuild.llm.source import open_source
from edgebuild.llm.store import DATA, Index
from edgebuild.llm.text import Text, open_tokenizer, read_text, write_beside
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.units import Bytes

CONTEXT = 512
BLOCK = 32
UNIFORM = f"int4-g{BLOCK}-asym"
BOTH = ("MatMul", "Gather")
AXES = (("MatMul", 0), ("Gather", 1))
ONNXRUNTIME = Peer("onnxruntime", onnxruntime.__version__)
# onnxruntime's own ways, as its documentation gives them; the table, too, where they can.
PEERS: Mapping[str, Any] = {
    "onnxruntime RTN, symmetric": DefaultWeightOnlyQuantConfig(
        block_size=BLOCK, is_symmetric=True, op_types_to_quantize=BOTH, quant_axes=AXES
    ),
    "onnxruntime RTN": DefaultWeightOnlyQuantConfig(
        block_size=BLOCK, is_symmetric=False, op_types_to_quantize=BOTH, quant_axes=AXES
    ),
    "onnxruntime HQQ": HQQWeightOnlyQuantConfig(block_size=BLOCK),
    "onnxruntime k-quant": KQuantWeightOnlyQuantConfig(),
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A network in floats, as we read it and as llama.cpp does."""

    source: Path
    gguf: Path

    @property
    def name(self) -> str:
        return self.gguf.stem


@dataclass(frozen=True)
class Remembering(Forward):
    """The float network, whose logits of the same states are computed once."""

    known: dict[bytes, Floats] = field(default_factory=dict)

    def logits(self, states: Floats) -> Floats:
        key = hashlib.sha256(states.tobytes()).digest()
        if key not in self.known:
            self.known[key] = super().logits(states)
        return self.known[key]


def qualities(subject: Subject, text_file: Path, folder: Path, progress: Progress) -> Iterator[Row]:
    """Each system's weights in one graph, on the second half of the text."""
    folder.mkdir()
    source = open_source(subject.source)
    forward = Remembering(source, read_network(source))
    text = _text(source, text_file, folder)
    states = forward.states(text.proving, progress)
    seen = calibrate(forward, text.calibrating, progress)
    measured = choose_importances(source, save_importances(seen, folder / "seen.safetensors"))
    norms = Importances(source)

    def row(system: str, decoder: Decoder, size: int) -> Row:
        proof = compare(decoder, forward, "", text.proving, states, progress)
        return {
            **{"task": "quality", "system": system, "model": subject.name, "bytes": size},
            **{"kl": proof.kl, "top1": proof.agreement, "perplexity": proof.perplexity},
            "float_perplexity": proof.float_perplexity,
        }

    def ours(system: str, layouts: Layouts, importances: Importances | None) -> Row:
        progress.say(f"quality, {system}")
        out = folder / "ours"
        done = convert(source, out, layouts, progress, importances)
        decoder = Decoder(str(_graph(forward, done.index, out)))
        found = row(system, decoder, done.index.size)
        shutil.rmtree(out)
        return found

    def of_llama(system: str, ftype: str) -> Iterator[Row]:
        progress.say(f"quality, {system}")
        with serving(rounded(subject.gguf, folder, ftype)) as served:
            found = row(system, served, served.size)
        sizes[system] = served.size
        yield found

    def of_onnxruntime(system: str, config: Any) -> Iterator[Row]:
        progress.say(f"quality, {system}")
        out = folder / "theirs"
        try:
            graph = _quantized(floats, config, out)
            size = sum(file.stat().st_size for file in out.iterdir())
            yield row(system, Decoder(str(graph)), size)
        finally:
            shutil.rmtree(out, ignore_errors=True)

    # Of systems that others are to be compared with at equal bytes.
    sizes: dict[str, int] = {}
    for system, layouts, importances in (
        (f"edgebuild {UNIFORM}", Mix.parse(UNIFORM), None),
        (f"edgebuild {UNIFORM}, by norms", Mix.parse(UNIFORM), norms),
        (f"edgebuild {UNIFORM}, by text", Mix.parse(UNIFORM), measured),
        (f"edgebuild {UNIFORM}+int8-head, by text", Mix.parse(f"{UNIFORM}+int8-head"), measured),
    ):
        found = ours(system, layouts, importances)
        if layouts == Mix.parse(UNIFORM):
            sizes[UNIFORM] = found["bytes"]
        yield found
    for ftype in llama.FTYPES:
        system = f"llama.cpp {ftype}"
        yield from rows_of(LLAMA, "quality", system, subject.name, partial(of_llama, system, ftype))
    sites = survey(source, measured, progress, is_searched=True)
    # Not the one that remembers: rounded heads give other logits of the same states.
    reference = Reference(Forward(source, forward.network), text.calibrating[:1])
    sites = weighed(sites, sensitivities(reference, measured, progress))
    for other, size in sizes.items():
        mixed = choose(sites, Limit.of(source.decoder, Bytes(size)))
        yield ours(f"edgebuild mixed bits, by text, as large as {other}", mixed, measured)
    floats = _plain_floats(forward, folder / "floats", progress)
    for system, config in PEERS.items():
        measure = partial(of_onnxruntime, system, config)
        yield from rows_of(ONNXRUNTIME, "quality", system, subject.name, measure)


def _text(source: Checkpoint, file: Path, folder: Path) -> Text:
    own = source.path
    if not own.is_dir():
        own = folder / "tokenizer"
        write_beside(source, own)
    return read_text(file, open_tokenizer(own), source.path, CONTEXT)


def _graph(forward: Forward, index: Index, out: Path) -> Path:
    file = out / "all.onnx"
    write_graph(decoder_graph(forward.network, index, CONTEXT, logits=Logits.ALL), file)
    return file


def _plain_floats(forward: Forward, out: Path, progress: Progress) -> onnx.ModelProto:
    """The graph in floats, its matrices as constants of MatMul: what quantizers look for."""
    done = convert(forward.checkpoint, out, Mix.parse("fp32"), progress)
    model = onnx.load(str(_graph(forward, done.index, out)))
    made_by = {name: node for node in model.graph.node for name in node.output}
    constants = {each.name: each for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "MatMul":
            continue
        cast = made_by[made_by[node.input[1]].input[0]]
        name = f"{cast.input[0]}.turned"
        turned = numpy_helper.to_array(constants[cast.input[0]]).T.copy()
        model.graph.initializer.append(numpy_helper.from_array(turned, name))
        node.input[1] = name
    used = {name for node in model.graph.node if node.op_type != "Transpose" for name in node.input}
    casts = [node for node in model.graph.node if node.op_type in ("Cast", "Transpose")]
    for node in casts:
        if node.output[0] not in used:
            model.graph.node.remove(node)
    shutil.rmtree(out)
    return model


def _quantized(floats: onnx.ModelProto, config: Any, out: Path) -> Path:
    torch.manual_seed(0)
    model = onnx.ModelProto()
    model.CopyFrom(floats)
    if config.algorithm == "DEFAULT":
        config.accuracy_level, config.bits = ACCURACY_LEVEL, 4
    # One of the ways has no size of blocks of its own.
    quantizer = MatMulNBitsQuantizer(model, block_size=BLOCK, algo_config=config)
    quantizer.process()
    made = quantizer.model.model
    for node in made.graph.node:
        if node.op_type == "MatMulNBits":
            level = [each for each in node.attribute if each.name == "accuracy_level"]
            for each in level:
                node.attribute.remove(each)
            node.attribute.append(onnx.helper.make_attribute("accuracy_level", ACCURACY_LEVEL))
    kept = {name for node in made.graph.node for name in node.input}
    for each in [each for each in made.graph.initializer if each.name not in kept]:
        made.graph.initializer.remove(each)
    out.mkdir()
    file = out / "all.onnx"
    onnx.save(made, str(file), save_as_external_data=True, location=DATA)
    return file
