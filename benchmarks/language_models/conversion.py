"""Converts random checkpoints, and has onnxruntime's own quantizer do the same work in memory."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from peers import AUTO_ROUND, GENAI, Peer, Run, python_of, rows_of, run
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from edgebuild.llm.config import read_decoder
from edgebuild.vocabulary.contracts import Progress

# A decoder of Llama's kind; as many layers as the bytes ask for.
CONFIG = {
    **{"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192},
    **{"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000},
    # What others want to read beside the shapes.
    **{"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16", "rms_norm_eps": 1e-5},
    **{"max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": 2},
}
LAYER_BYTES = 2 * (2 * 2048 * 2048 + 2 * 512 * 2048 + 3 * 8192 * 2048)
ENDS_BYTES = 2 * 2 * 32000 * 2048
# Heavy-tailed numbers, written again and again from other places: making them takes longer than
# writing them.
POOL = 2**24
SYSTEMS = {"edgebuild": ["int4-g32"], "edgebuild, scales searched": ["int4-g32-asym", "--search"]}
WORDS = {"<unk>": 0, "<s>": 1, "</s>": 2}
# What onnxruntime's quantizer is given: one layer's matrices, since it wants them in memory.
QUANTIZER = """
import sys, time, numpy as np, onnx
from onnx import helper, numpy_helper, TensorProto
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
shapes = [(2048, 8192), (2048, 8192), (8192, 2048)]
nodes, constants = [], []
for at, shape in enumerate(shapes):
    values = np.random.default_rng(at).standard_normal(shape).astype(np.float32)
    constants.append(numpy_helper.from_array(values, f"w{at}"))
    nodes.append(helper.make_node("MatMul", [f"x{at}", f"w{at}"], [f"y{at}"]))
def info(name, width):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width])
graph = helper.make_graph(nodes, "g", [info(f"x{i}", s[0]) for i, s in enumerate(shapes)],
                          [info(f"y{i}", s[1]) for i, s in enumerate(shapes)], constants)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
began = time.perf_counter()
MatMulNBitsQuantizer(model, bits=4, block_size=32, is_symmetric=True).process()
print(time.perf_counter() - began, sum(2 * a * b for a, b in shapes))
"""

Row = dict[str, Any]


def conversions(gigabytes: float, folder: Path, progress: Progress) -> Iterator[Row]:
    """Three sizes: memory must not grow, and what others can do depends on it."""
    for size in (gigabytes / 8, gigabytes / 2, gigabytes):
        checkpoint = random_checkpoint(folder / f"random-{size:g}GB", size * 1e9)
        out = folder / "converted"
        for system, words in SYSTEMS.items():
            progress.say(f"convert, {system}, {size:g} GB")
            command = partial(_own, words, checkpoint, out)
            yield {**_told(system, checkpoint), **_converted(command, checkpoint, out)}
        for peer, command_of in PEERS.items():
            progress.say(f"convert, {peer.name}, {size:g} GB")
            measure = partial(_of_a_peer, partial(command_of, checkpoint, out), checkpoint, out)
            yield from rows_of(peer, "convert", peer.name, named(checkpoint), measure)
        shutil.rmtree(checkpoint)
    progress.say("convert, onnxruntime's quantizer")
    yield _quantizer()


def named(checkpoint: Path) -> str:
    """ "random, 0.987 GB": by what it has, not by what was asked for."""
    return f"random, {_size(checkpoint) / 1e9:.3g} GB"


def _size(checkpoint: Path) -> int:
    return (checkpoint / "model.safetensors").stat().st_size


def _told(system: str, checkpoint: Path) -> Row:
    return {"task": "convert", "system": system, "model": named(checkpoint)}


def _own(words: Sequence[str], checkpoint: Path, out: Path) -> list[str]:
    precision, *options = words
    program = Path(sys.executable).with_name("edgebuild")
    command = [str(program), "convert", str(checkpoint), "-o", str(out)]
    return [*command, "--precision", precision, *options]


def builder(checkpoint: Path, out: Path) -> list[str]:
    """The embedding and the head, too, and blocks of 32, as we round them."""
    module = [str(python_of(GENAI)), "-m", "onnxruntime_genai.models.builder"]
    places = ["-i", str(checkpoint), "-o", str(out), "-c", str(out / "cache")]
    options = ["--extra_options", "op_types_to_quantize=MatMul/Gather", "block_size=32"]
    return [*module, *places, "-p", "int4", "-e", "cpu", *options]


def _auto_round(checkpoint: Path, out: Path) -> list[str]:
    """Its model-free mode leaves the embedding and the head as they are."""
    program = python_of(AUTO_ROUND).with_name("auto-round")
    scheme = ["--model_free", "--scheme", "W4A16", "--group_size", "32"]
    return [str(program), str(checkpoint), *scheme, "--output_dir", str(out)]


PEERS: dict[Peer, Callable[[Path, Path], list[str]]] = {GENAI: builder, AUTO_ROUND: _auto_round}


def _of_a_peer(command: Callable[[], list[str]], checkpoint: Path, out: Path) -> Iterator[Row]:
    yield _converted(command, checkpoint, out)


def _converted(command: Callable[[], list[str]], checkpoint: Path, out: Path) -> Row:
    """By the clock on the wall, from the start of the process to its end."""
    words = command()
    shutil.rmtree(out, ignore_errors=True)
    try:
        done = run(words)
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return {"bytes": size, **_rates(done, _size(checkpoint))}


def _rates(done: Run, read: int) -> Row:
    return {
        **{"seconds": done.seconds, "gb_per_s": read / done.seconds / 1e9},
        **{"gb_per_cpu_s": read / done.processor / 1e9, "peak_rss_mb": done.peak / 1e6},
    }


def _quantizer() -> Row:
    done = run([sys.executable, "-c", QUANTIZER])
    seconds, read = map(float, done.printed.split()[-2:])
    return {
        **{"task": "convert", "system": "onnxruntime RTN", "model": "three matrices of a layer"},
        **{"bytes": None, "seconds": seconds, "gb_per_s": read / seconds / 1e9},
        **{"gb_per_cpu_s": None, "peak_rss_mb": done.peak / 1e6},
    }


def random_checkpoint(folder: Path, size: float, **settings: object) -> Path:
    """A folder as save_pretrained leaves it, in one file of about so many bytes."""
    folder.mkdir()
    layers = max(1, round((size - ENDS_BYTES) / LAYER_BYTES))
    config = {**CONFIG, "num_hidden_layers": layers, **settings}
    (folder / "config.json").write_text(json.dumps(config))
    _write_tokenizer(folder)
    names = {
        name: each.shape
        for each in read_decoder(config, "random", "random").weights
        for name, _ in each.names()
    }
    header, at = {}, 0
    for name, shape in names.items():
        length = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + length]}
        at += length
    text = json.dumps(header).encode()
    chance = np.random.default_rng(0)
    pool = (chance.standard_t(5, POOL) * 0.02).astype(ml_dtypes.bfloat16).tobytes()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        while at:
            start = 2 * int(chance.integers(POOL // 2))
            file.write(pool[start : start + min(at, len(pool) - start)])
            at -= min(at, len(pool) - start)
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    time.sleep(1)
    return folder


def _write_tokenizer(folder: Path) -> None:
    """Of a few words: others read one, and have no other use for it."""
    Tokenizer(WordLevel(WORDS, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
