"""Tokens a second and memory of models of four bits: our graph, onnxruntime-genai, llama.cpp.

All are timed by the same code, in processes of their own, and read all of their weights for a
token: where the embedding is the head, nothing is only looked up.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import genai
import llama
from conversion import builder, named, random_checkpoint
from peers import GENAI, LLAMA, ROOT, python_of, rows_of, run
from served import rates, rounded
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from edgebuild import generate
from edgebuild.llm.checkpoint import Checkpoint
from edgebuild.llm.convert import convert
from edgebuild.llm.genai import FILE as GENAI_CONFIG
from edgebuild.llm.genai import genai_config
from edgebuild.llm.graph import decoder_graph, write_graph
from edgebuild.llm.mix import Mix
from edgebuild.llm.network import read_network
from edgebuild.llm.save import write_floats, write_settings
from edgebuild.llm.source import open_source
from edgebuild.llm.store import DATA
from edgebuild.vocabulary.contracts import Progress

CONTEXT = 512
# As llama.cpp's Q4_0 and the builder's default: a scale for each 32 weights, and no zero points.
UNIFORM = "int4-g32"
# Gigabytes of the random checkpoint: the builder that is compared with cannot read Gemma.
RANDOM = 1.0

Row = dict[str, Any]


def decodings(gguf: Path, folder: Path, progress: Progress) -> Iterator[Row]:
    """Of Gemma and of a random Llama; what llama.cpp can read of these."""
    random = random_checkpoint(folder / "random", RANDOM * 1e9, tie_word_embeddings=True)
    for source, model in ((open_source(gguf), gguf.stem), (open_source(random), named(random))):
        out = folder / "decode"
        yield from _of_graphs(source, model, out, progress)
        progress.say(f"decode, onnxruntime-genai, {model}")
        own = partial(_of_own_build, source, folder)
        yield from rows_of(GENAI, "decode", "onnxruntime-genai, its builder's model", model, own)
        ours = partial(_of_genai, out)
        yield from rows_of(GENAI, "decode", "onnxruntime-genai, edgebuild's graph", model, ours)
        shutil.rmtree(out)
    for ftype in llama.FTYPES:
        progress.say(f"decode, llama.cpp {ftype}")
        measure = partial(_of_llama, gguf, folder, ftype)
        yield from rows_of(LLAMA, "decode", f"llama.cpp {ftype}", gguf.stem, measure)


def _of_graphs(source: Checkpoint, model: str, out: Path, progress: Progress) -> Iterator[Row]:
    """Our loader, before and after the weights are prepacked."""
    network = read_network(source)
    done = convert(source, out, Mix.parse(UNIFORM), progress)
    write_graph(decoder_graph(network, done.index, CONTEXT), out / generate.GRAPH)
    (out / GENAI_CONFIG).write_bytes(genai_config(network, CONTEXT, None, ()))
    for system in ("edgebuild", "edgebuild, prepacked"):
        progress.say(f"decode, {system}, {model}")
        if system.endswith("prepacked"):
            generate.prepack(str(out))
        found = json.loads(run(_loader("bench", "--folder", str(out))).printed)
        told = {"task": "decode", "system": system, "model": model}
        yield {**told, **_row(found, done.index.size)}


def _of_own_build(source: Checkpoint, folder: Path) -> Iterator[Row]:
    """The float network as onnxruntime-genai's builder rounds it, the table, too."""
    floats, out = folder / "checkpoint", folder / "genai"
    try:
        if source.path.is_dir():
            floats = source.path
        else:
            _write_checkpoint(source, floats)
        run(builder(floats, out))
        yield from _of_genai(out)
    finally:
        for made in (folder / "checkpoint", out):
            shutil.rmtree(made, ignore_errors=True)


def _of_genai(folder: Path) -> Iterator[Row]:
    words = [str(python_of(GENAI)), genai.__file__, str(folder)]
    found = json.loads(run(words, PYTHONPATH=str(ROOT)).printed)
    files = [*folder.glob("*.onnx.data"), *folder.glob(DATA)]
    yield _row(found, sum(file.stat().st_size for file in files))


def _of_llama(gguf: Path, folder: Path, ftype: str) -> Iterator[Row]:
    found = rates(rounded(gguf, folder, ftype))
    yield _row(found, found["bytes"])


def _row(found: Row, read: int) -> Row:
    bandwidth = json.loads(run(_loader("bandwidth")).printed)["bandwidth"]
    prefill, decode = (test["avg_ts"] for test in found["rows"])
    return {
        **{"bytes": read, "tokens_per_s": decode, "prefill_tokens_per_s": prefill},
        **{"anon_mb": found["anonymous"] / 1e6, "mapped_mb": found["mapped"] / 1e6},
        "bandwidth_share": decode * read / bandwidth,
    }


def _loader(command: str, *options: str) -> list[str]:
    return [sys.executable, generate.__file__, *options, command]


def _write_checkpoint(source: Checkpoint, folder: Path) -> None:
    """As save_pretrained leaves it, in floats of four bytes."""
    folder.mkdir()
    write_floats(source, folder)
    kind = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[source.decoder.family]
    config = {**source.settings, "architectures": [kind], "dtype": "float32"}
    write_settings(config, folder)
