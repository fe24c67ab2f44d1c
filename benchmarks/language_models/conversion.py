"""Converts random checkpoints, and has onnxruntime's own quantizer do the same work in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from edgebuild.llm.config import read_decoder
from edgebuild.vocabulary.contracts import Progress

# A decoder of Llama's kind; as many layers as the bytes ask for.
CONFIG = {
    **{"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192},
    **{"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000},
}
LAYER_BYTES = 2 * (2 * 2048 * 2048 + 2 * 512 * 2048 + 3 * 8192 * 2048)
ENDS_BYTES = 2 * 2 * 32000 * 2048
# Heavy-tailed numbers, written again and again from other places: making them takes longer than
# writing them.
POOL = 2**24
SYSTEMS = {"edgebuild": ["int4-g32"], "edgebuild, scales searched": ["int4-g32-asym", "--search"]}
# What onnxruntime's quantizer is given: one layer's matrices, since it wants them in memory.
PEER = """
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
    """Two sizes, the second twice the first: memory must not grow."""
    for size in (gigabytes / 2, gigabytes):
        checkpoint = _checkpoint(folder / f"random-{size:g}", size * 1e9)
        for system, words in SYSTEMS.items():
            progress.say(f"convert, {system}, {size:g} GB")
            yield _converted(system, words, checkpoint, folder / "converted")
        for file in checkpoint.iterdir():
            file.unlink()
    progress.say("convert, onnxruntime's quantizer")
    yield _peer()


def _converted(system: str, words: list[str], checkpoint: Path, out: Path) -> Row:
    precision, *options = words
    program = Path(sys.executable).with_name("edgebuild")
    command = [str(program), "convert", str(checkpoint), "-o", str(out)]
    command += ["--precision", precision, *options, "--json"]
    printed, peak, processor = _run(command)
    found = json.loads(printed)
    for file in out.iterdir():
        file.unlink()
    return {
        **{"task": "convert", "system": system, "model": checkpoint.name},
        **{"bytes": found["bytes"], "seconds": found["seconds"]},
        "gb_per_s": found["read"] / found["seconds"] / 1e9,
        "gb_per_cpu_s": found["read"] / processor / 1e9,
        "peak_rss_mb": peak / 1e6,
    }


def _peer() -> Row:
    printed, peak, _ = _run([sys.executable, "-c", PEER])
    seconds, read = map(float, printed.split()[-2:])
    return {
        **{"task": "convert", "system": "onnxruntime RTN", "model": "three matrices of a layer"},
        **{"bytes": None, "seconds": seconds, "gb_per_s": read / seconds / 1e9},
        **{"gb_per_cpu_s": None, "peak_rss_mb": peak / 1e6},
    }


def _run(command: list[str]) -> tuple[str, int, float]:
    """What a command prints, its peak memory in bytes, and the processor's seconds."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    printed, complaint = process.stdout.read(), process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command[:3]} failed: {complaint[-500:]}")
    return printed, used.ru_maxrss * 1024, used.ru_utime + used.ru_stime


def _checkpoint(folder: Path, size: float) -> Path:
    """A folder as save_pretrained leaves it, in one file."""
    folder.mkdir()
    layers = max(1, round((size - ENDS_BYTES) / LAYER_BYTES))
    config = {**CONFIG, "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config))
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
