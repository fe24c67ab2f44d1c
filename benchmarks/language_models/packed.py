"""What Gemma becomes, by us and by onnxruntime's quantizers: how far from its floats, how fast."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    HQQWeightOnlyQuantConfig,
    KQuantWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)
from pydantic import TypeAdapter

from edgebuild import generate
from edgebuild.generate import Decoder
from edgebuild.llm.calibrate import calibrate, save_importances
from edgebuild.llm.checkpoint import Checkpoint
from edgebuild.llm.convert import convert
from edgebuild.llm.forward import Forward
from edgebuild.llm.graph import ACCURACY_LEVEL, Logits, decoder_graph, write_graph
from edgebuild.llm.importance import Importances, choose_importances
from edgebuild.llm.mix import Mix
from edgebuild.llm.mixed import Limit, choose, survey
from edgebuild.llm.network import read_network
from edgebuild.llm.proof import compare
from edgebuild.llm.source import open_source
from edgebuild.llm.store import DATA, Index
from edgebuild.llm.text import Text, open_tokenizer, read_text, write_beside
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.language_model import Rates
from edgebuild.vocabulary.units import Bytes

CONTEXT = 512
UNIFORM = "int4-g32-asym"
BOTH = ("MatMul", "Gather")
AXES = (("MatMul", 0), ("Gather", 1))
# onnxruntime's own ways, as its documentation gives them; the table, too, where they can.
PEERS: Mapping[str, Any] = {
    "onnxruntime RTN, symmetric": DefaultWeightOnlyQuantConfig(
        block_size=32, is_symmetric=True, op_types_to_quantize=BOTH, quant_axes=AXES
    ),
    "onnxruntime RTN": DefaultWeightOnlyQuantConfig(
        block_size=32, is_symmetric=False, op_types_to_quantize=BOTH, quant_axes=AXES
    ),
    "onnxruntime HQQ": HQQWeightOnlyQuantConfig(block_size=32),
    "onnxruntime k-quant": KQuantWeightOnlyQuantConfig(),
}

Row = dict[str, Any]


def qualities(gguf: Path, text_file: Path, folder: Path, progress: Progress) -> Iterator[Row]:
    """Each system's weights in one graph, on the second half of the text."""
    source = open_source(gguf)
    forward = Forward(source, read_network(source))
    text = _text(source, text_file, folder)
    states = forward.states(text.proving, progress)
    seen = calibrate(forward, text.calibrating, progress)
    measured = choose_importances(source, save_importances(seen, folder / "seen.safetensors"))
    norms = Importances(source)

    def row(system: str, graph: Path, size: int) -> Row:
        proof = compare(Decoder(str(graph)), forward, "", text.proving, states, progress)
        return {
            **{"task": "quality", "system": system, "model": gguf.stem, "bytes": size},
            **{"kl": proof.kl, "top1": proof.agreement, "perplexity": proof.perplexity},
            "float_perplexity": proof.float_perplexity,
        }

    for system, layouts, importances in (
        (f"edgebuild {UNIFORM}", Mix.parse(UNIFORM), None),
        (f"edgebuild {UNIFORM}, by norms", Mix.parse(UNIFORM), norms),
        (f"edgebuild {UNIFORM}, by text", Mix.parse(UNIFORM), measured),
        (f"edgebuild {UNIFORM}+int8-head, by text", Mix.parse(f"{UNIFORM}+int8-head"), measured),
    ):
        progress.say(f"quality, {system}")
        out = folder / "ours"
        done = convert(source, out, layouts, progress, importances)
        if system.endswith(f"{UNIFORM}, by text"):
            equal = Bytes(done.index.size)
        yield row(system, _graph(forward, done.index, out), done.index.size)
        shutil.rmtree(out)
    progress.say("quality, edgebuild mixed bits, by text")
    mixed = choose(survey(source, measured, progress), equal, Limit.STORED)
    done = convert(source, folder / "ours", mixed, progress, measured)
    graph = _graph(forward, done.index, folder / "ours")
    yield row("edgebuild mixed bits, by text", graph, done.index.size)
    shutil.rmtree(folder / "ours")
    floats = _plain_floats(forward, folder / "floats", progress)
    for system, config in PEERS.items():
        progress.say(f"quality, {system}")
        graph = _quantized(floats, config, folder / "theirs")
        yield row(system, graph, sum(file.stat().st_size for file in graph.parent.iterdir()))
        shutil.rmtree(graph.parent)


def decodings(gguf: Path, folder: Path, progress: Progress) -> Iterator[Row]:
    """Tokens a second and memory of our graph, before and after its weights are prepacked."""
    source = open_source(gguf)
    forward, out = Forward(source, read_network(source)), folder / "decode"
    done = convert(source, out, Mix.parse(UNIFORM), progress)
    write_graph(decoder_graph(forward.network, done.index, CONTEXT), out / generate.GRAPH)
    for system in ("edgebuild", "edgebuild, prepacked"):
        progress.say(f"decode, {system}")
        if system.endswith("prepacked"):
            generate.prepack(str(out))
        rates = TypeAdapter(Rates).validate_json(_printed(out, "bench"))
        bandwidth, read = json.loads(_printed(out, "bandwidth"))["bandwidth"], done.index.size
        yield {
            **{"task": "decode", "system": system, "model": gguf.stem, "bytes": read},
            **{"tokens_per_s": rates.decode, "prefill_tokens_per_s": rates.rows[0].avg_ts},
            **{"anon_mb": rates.anonymous / 1e6, "mapped_mb": rates.mapped / 1e6},
            "bandwidth_share": rates.decode * read / bandwidth,
        }


def _printed(folder: Path, command: str) -> str:
    words = [sys.executable, generate.__file__, "--folder", str(folder), command]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def _text(source: Checkpoint, file: Path, folder: Path) -> Text:
    write_beside(source, folder / "tokenizer")
    return read_text(file, open_tokenizer(folder / "tokenizer"), source.path, CONTEXT)


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
    quantizer = MatMulNBitsQuantizer(model, algo_config=config)
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
