"""Reads a GGUF file as a checkpoint: its settings as config.json, its tensors by the usual names.

llama.cpp reorders rows of Llama's queries and keys, and adds what Gemma's norms add already; both
are undone when rows are read.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgebuild.llm._gguf_blocks import BLOCK_FORMATS
from edgebuild.llm.checkpoint import DTYPES, Checkpoint, StoredTensor, refuse_other_shapes
from edgebuild.llm.config import FAMILIES, read_decoder
from edgebuild.vocabulary.errors import InvalidCheckpoint, did_you_mean

MAGIC = b"GGUF"
VERSIONS = (2, 3)
# Longer names and lists of dimensions are a corrupt file's.
MOST_DIMENSIONS = 4
LONGEST_TEXT = 10**8
NUMBERS = {
    **{0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?"},
    **{10: "<Q", 11: "<q", 12: "<d"},
}
TEXT, LIST = 8, 9
TYPES = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 30: "BF16"},
    **{10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K"},
}
ARCHITECTURES = {
    **{name: name for name in ("llama", "qwen2", "qwen3", "gemma", "gemma2")},
    "gemma3": "gemma3_text",
}
# Keys of config.json by those that follow the architecture's name.
KEYS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base": "rope_theta",
}
# Of these alone, scores are scaled by the width of all heads, and no key says so: layers by kind.
SCALED_BY_WIDTH = {("gemma2", 46), ("gemma3_text", 62)}
ENDS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
IN_LAYER = {
    **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
    **{f"attn_{part}_norm": f"self_attn.{part}_norm" for part in "qk"},
    **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
EMBEDDING = "token_embd.weight"


def load_gguf(file: Path) -> Checkpoint:
    """The decoder in a GGUF file.

    Raises:
        InvalidCheckpoint: no such file, one that is cut short or corrupt, or an architecture or a
            block format that is not read here.
    """
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as data:
            return _read(file, data)
    except OSError as problem:
        raise InvalidCheckpoint(f"{file} cannot be read: {problem.strerror}") from None
    except (struct.error, UnicodeDecodeError, ValueError):
        raise InvalidCheckpoint(f"{file} is no GGUF file, or cut short") from None


def _read(file: Path, data: mmap.mmap) -> Checkpoint:
    reader = _Reader(data)
    if reader.take(4) != MAGIC or reader.number("<I") not in VERSIONS:
        raise InvalidCheckpoint(f"{file} is no GGUF file of version 2 or 3")
    tensors, pairs = reader.number("<Q"), reader.number("<Q")
    settings = {reader.text(): reader.value() for _ in range(pairs)}
    infos = [reader.info() for _ in range(tensors)]
    alignment = settings.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise InvalidCheckpoint(f"{file}: an alignment of {alignment!r}")
    start = -(-reader.at // alignment) * alignment
    kind = _kind(file, settings)
    config = _config(kind, settings, {info.name: info for info in infos})
    decoder = read_decoder(config, file.stem, str(file))
    heads = {"q_proj": decoder.heads, "k_proj": _count(config.get("num_key_value_heads"))}
    found = {}
    for info in infos:
        name = _usual_name(info.name, kind)
        reordered = next((heads[part] for part in heads if f"{part}." in name), 0)
        tensor = _placed(file, info, start, len(data))
        found[name] = StoredTensor(
            name,
            file,
            *tensor,
            reordered_heads=reordered if kind == "llama" else 0,
            offset_by=-decoder.norm_offset if name.endswith("norm.weight") else 0.0,
        )
    checkpoint = Checkpoint(file, decoder, found, config)
    refuse_other_shapes(checkpoint)
    return checkpoint


@dataclass(frozen=True)
class _Info:
    """A tensor as the header describes it; dimensions come last one first."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


class _Reader:
    """Takes one value after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self.at = data, 0

    def take(self, count: int) -> bytes:
        if count > LONGEST_TEXT or self.at + count > len(self._data):
            raise ValueError("cut short")
        self.at += count
        return self._data[self.at - count : self.at]

    def number(self, form: str) -> int:
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def text(self) -> str:
        return self.take(self.number("<Q")).decode()

    def value(self) -> object:
        """A number or a text; lists, such as the tokens, are passed over."""
        return self._value(self.number("<I"))

    def _value(self, kind: int) -> object:
        if kind == TEXT:
            return self.text()
        if kind in NUMBERS:
            return struct.unpack(NUMBERS[kind], self.take(struct.calcsize(NUMBERS[kind])))[0]
        if kind != LIST:
            raise ValueError("unknown type")
        inner, count = self.number("<I"), self.number("<Q")
        if inner in NUMBERS:
            self.take(count * struct.calcsize(NUMBERS[inner]))
            return None
        for _ in range(count):
            self._value(inner)
        return None

    def info(self) -> _Info:
        name, dimensions = self.text(), self.number("<I")
        if dimensions > MOST_DIMENSIONS:
            raise ValueError("too many dimensions")
        shape = tuple(self.number("<Q") for _ in range(dimensions))[::-1]
        return _Info(name, shape, self.number("<I"), self.number("<Q"))


def _kind(file: Path, settings: Mapping[str, object]) -> str:
    architecture = str(settings.get("general.architecture"))
    if architecture not in ARCHITECTURES:
        hint = did_you_mean(architecture, ARCHITECTURES)
        raise InvalidCheckpoint(
            f"{file}: the architecture {architecture!r} is not read from GGUF.{hint} Known are "
            f"{', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[architecture]


def _config(
    kind: str, settings: Mapping[str, object], infos: Mapping[str, _Info]
) -> dict[str, object]:
    architecture = settings["general.architecture"]
    config: dict[str, object] = {
        ours: settings[f"{architecture}.{theirs}"]
        for theirs, ours in KEYS.items()
        if f"{architecture}.{theirs}" in settings
    }
    heads = config.get("num_attention_heads")
    config.setdefault("num_key_value_heads", heads)
    if (kind, config.get("num_hidden_layers")) in SCALED_BY_WIDTH:
        config["query_pre_attn_scalar"] = _count(config.get("hidden_size")) // _count(heads)
    if scaling := settings.get(f"{architecture}.rope.scaling.type"):
        factor = settings.get(f"{architecture}.rope.scaling.factor", 1.0)
        config["rope_scaling"] = {"rope_type": scaling, "factor": factor}
    return config | {
        "model_type": kind,
        "vocab_size": infos[EMBEDDING].shape[0] if EMBEDDING in infos else None,
        "tie_word_embeddings": "output.weight" not in infos,
    }


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def _usual_name(name: str, kind: str) -> str:
    """ "blk.3.attn_q.weight" is "model.layers.3.self_attn.q_proj.weight"."""
    match name.split("."):
        case [end, rest] if end in ENDS:
            return f"{ENDS[end]}.{rest}"
        case ["blk", layer, "ffn_norm", rest]:
            return f"model.layers.{layer}.{FAMILIES[kind].feed_norm}.{rest}"
        case ["blk", layer, part, rest] if part in IN_LAYER:
            return f"model.layers.{layer}.{IN_LAYER[part]}.{rest}"
    return name


def _placed(
    file: Path, info: _Info, start: int, size: int
) -> tuple[str, tuple[int, ...], int, int]:
    """Type, shape, offset and length of a tensor."""
    dtype = TYPES.get(info.kind)
    if dtype is None:
        raise InvalidCheckpoint(
            f"{file}: {info.name} has the block format {info.kind}: read are "
            f"{', '.join(TYPES.values())}"
        )
    weights = math.prod(info.shape)
    if dtype in BLOCK_FORMATS:
        blocks = BLOCK_FORMATS[dtype]
        if not info.shape or info.shape[-1] % blocks.weights:
            raise InvalidCheckpoint(f"{file}: {info.name} is not whole blocks of {dtype}")
        length = weights // blocks.weights * blocks.bytes
    else:
        length = weights * DTYPES[dtype]
    offset = start + info.offset
    if offset + length > size:
        raise InvalidCheckpoint(f"{file} is cut short: {info.name} ends beyond it")
    return dtype, info.shape, offset, length
