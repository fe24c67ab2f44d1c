"""GGUF files hold the same floats as the checkpoints that they were made from."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llm.checkpoints import TINY, random_tensors
from llm.test_convert import Silence, floats_of

from edgebuild.llm import convert as converting
from edgebuild.llm._gguf_blocks import BLOCK_FORMATS
from edgebuild.llm.config import read_decoder
from edgebuild.llm.convert import convert
from edgebuild.llm.gguf import KEYS
from edgebuild.llm.mix import Mix
from edgebuild.llm.source import open_source
from edgebuild.vocabulary.errors import InvalidCheckpoint

# Made with gguf-py 0.19.0 from random bytes: blocks, and the floats that they mean.
BLOCKS = np.load(Path(__file__).with_name("gguf-blocks.npz"))
NAMES = {
    **{"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"},
    **{f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"},
    **{f"self_attn.{part}_norm": f"attn_{part}_norm" for part in "qk"},
    **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
    **{"self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm"},
}
LLAMA = {"post_attention_layernorm": "ffn_norm"}
GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converting, "CHUNK", 700)


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_blocks_mean_what_gguf_py_says(name: str) -> None:
    found = BLOCK_FORMATS[name].floats(BLOCKS[f"{name}-bytes"])
    np.testing.assert_array_equal(found.reshape(3, -1), BLOCKS[f"{name}-floats"])


def in_eights(weights: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Q8_0, and the floats that it means."""
    blocks = weights.reshape(-1, 32)
    scales = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float16)
    codes = np.rint(blocks / scales.astype(np.float32)).astype(np.int8)
    raw = np.concatenate([scales.view(np.uint8), codes.view(np.uint8)], axis=1)
    return raw.tobytes(), (codes * scales.astype(np.float32)).reshape(weights.shape)


def as_llama_cpp(weights: np.ndarray, heads: int) -> np.ndarray:
    """What its converter does to queries and keys."""
    rows, inputs = weights.shape
    halves = weights.reshape(heads, 2, rows // heads // 2, inputs)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows, inputs)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def write_gguf(file: Path, architecture: str, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """A file as llama.cpp's converter writes it; the floats that it means, by the usual names."""
    is_llama = architecture == "llama"
    decoder = read_decoder(config, "tiny", "tiny")
    names = NAMES | (GEMMA if architecture.startswith("gemma") else LLAMA)
    expected, infos, data = {}, b"", b""
    tensors = random_tensors(config)
    for name, tensor in tensors.items():
        weights = tensor.float().numpy()
        stem, _, rest = name.removeprefix("model.layers.").rpartition(".")
        layer, _, part = stem.partition(".") if name.startswith("model.layers.") else ("", "", stem)
        stored = f"blk.{layer}.{names[part]}.{rest}" if layer else f"{names[part]}.{rest}"
        heads = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}.get(part, 0) if is_llama else 0
        if weights.ndim == 2:
            raw, means = in_eights(as_llama_cpp(weights, heads) if heads else weights)
            expected[name] = in_eights(weights)[1]
            kind = 8
        else:
            offset = decoder.norm_offset if "norm" in name else 0.0
            raw, means = (weights + np.float32(offset)).tobytes(), weights
            expected[name] = (weights + np.float32(offset)) - np.float32(offset)
            kind = 0
        shape = means.shape[::-1]
        infos += text(stored) + struct.pack("<I", len(shape))
        infos += struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, len(data))
        data += raw + bytes(-len(raw) % 32)
    pairs = [text("general.architecture") + struct.pack("<I", 8) + text(architecture)]
    # Lists, as of the tokens, are passed over.
    pairs.append(text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b"))
    pairs.append(text("scores") + struct.pack("<IIQ2f", 9, 6, 2, 0.5, 1.5))
    for theirs, ours in KEYS.items():
        if ours in config:
            key = text(f"{architecture}.{theirs}")
            pairs.append(key + struct.pack("<II", 4, config[ours]))
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs) + infos
    file.write_bytes(header + bytes(-len(header) % 32) + data)
    return expected


CONFIGS: dict[str, dict[str, Any]] = {
    "llama": TINY,
    "qwen2": TINY | {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": TINY | {"model_type": "qwen3", "head_dim": 32},
    "gemma3": TINY | {"model_type": "gemma3_text", "head_dim": 32},
}


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_file_has_the_floats_of_its_checkpoint(tmp_path: Path, architecture: str) -> None:
    expected = write_gguf(tmp_path / "tiny.gguf", architecture, CONFIGS[architecture])
    done = convert(
        open_source(tmp_path / "tiny.gguf"), tmp_path / "out", Mix.parse("fp32"), Silence()
    )
    assert {entry.name for entry in done.index.entries} == expected.keys()
    for entry in done.index.entries:
        found = floats_of(tmp_path / "out", entry)
        np.testing.assert_array_equal(found, expected[entry.name], err_msg=entry.name)


def cut_short(data: bytes) -> bytes:
    return data[:-40]


def cut_in_the_header(data: bytes) -> bytes:
    return data[:100]


def other_magic(data: bytes) -> bytes:
    return b"GGML" + data[4:]


def other_architecture(data: bytes) -> bytes:
    return data.replace(text("llama"), text("lloma"), 1)


def endless_text(data: bytes) -> bytes:
    return data[:24] + b"\xff" * 8 + data[32:]


DEFECTS = {
    cut_short: "is cut short",
    cut_in_the_header: "no GGUF file, or cut short",
    other_magic: "no GGUF file of version 2 or 3",
    other_architecture: "architecture 'lloma' is not read from GGUF. Did you mean 'llama'",
    endless_text: "no GGUF file, or cut short",
}


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_broken_files_are_refused(tmp_path: Path, defect: Any) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, "llama", TINY)
    file.write_bytes(defect(file.read_bytes()))
    with pytest.raises(InvalidCheckpoint, match=DEFECTS[defect]):
        open_source(file)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidCheckpoint, match="cannot be read"):
        open_source(tmp_path / "none.gguf")
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(InvalidCheckpoint, match="no GGUF file"):
        open_source(tmp_path / "empty.gguf")
