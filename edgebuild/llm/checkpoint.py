"""Finds the tensors of a checkpoint in its safetensors files, by reading their headers alone."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgebuild.llm.config import Settings, load_decoder, read_settings
from edgebuild.vocabulary.decoder import Decoder
from edgebuild.vocabulary.errors import InvalidCheckpoint, first_line

INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# How multimodal checkpoints call their text part, and what it is called in a model of text alone.
RENAMED = {"language_model.lm_head.": "lm_head.", "language_model.model.": "model."} | {
    "model.language_model.": "model."
}
DTYPES = {
    **{"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2},
    **{"I16": 2, "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1},
}
FLOATS = ("BF16", "F16", "F32")
# Eight-bit floats are still one number for each weight.
FLOAT_METHODS = ("", "fp8")
# Those whose codes can be taken over.
PACKED_METHODS = ("gptq", "awq")
# safetensors itself allows no larger header.
LARGEST_HEADER = 100_000_000


Numbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Cut:
    """The rows and columns of a tensor that stay, in order; None for all."""

    rows: Numbers | None = None
    columns: Numbers | None = None

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        sizes = zip((self.rows, self.columns), whole, strict=False)
        return tuple(size if kept is None else len(kept) for kept, size in sizes)


WHOLE = Cut()


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's bytes are: row by row, little-endian.

    `reordered_heads` is how many heads' rows are reordered within each, as llama.cpp does it,
    `offset_by` what is added to the values as they are read, and `cut` what is read of it.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int
    reordered_heads: int = 0
    offset_by: float = 0.0
    cut: Cut = WHOLE

    @property
    def read_shape(self) -> tuple[int, ...]:
        """The shape of what is read."""
        return self.cut.shape(self.shape)


@dataclass(frozen=True)
class Checkpoint:
    """A decoder with its tensors by the names that `Decoder` gives them.

    There are none where the folder holds a config.json alone.
    """

    path: Path
    decoder: Decoder
    tensors: Mapping[str, StoredTensor]
    settings: Settings

    @property
    def quantization(self) -> Settings:
        """What the checkpoint was quantized with; empty where it holds floats."""
        settings = self.settings.get("quantization_config")
        return settings if isinstance(settings, dict) else {}

    @property
    def method(self) -> str:
        """What the checkpoint was quantized by; empty for floats."""
        return str(self.quantization.get("quant_method", "unknown")) if self.quantization else ""

    @property
    def stored(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.length for tensor in self.tensors.values())


def load_checkpoint(path: Path) -> Checkpoint:
    """The decoder in a folder with what is stored of it, checked against its shapes.

    Raises:
        InvalidCheckpoint: no decoder, pickled weights, a shard that is missing, cut short or
            corrupt, or tensors that are not the ones that config.json describes.
    """
    decoder = load_decoder(path)
    if not path.is_dir():
        return Checkpoint(path, decoder, {}, read_settings(path))
    settings = read_settings(path / "config.json")
    tensors = _named(tensor for file in _shards(path) for tensor in read_header(file))
    found = Checkpoint(path, decoder, tensors, settings)
    if tensors and found.method in FLOAT_METHODS + PACKED_METHODS:
        refuse_other_shapes(found)
    return found


def packed_name(name: str, part: str) -> str:
    """What stands in a packed matrix's place: "q_proj.qweight" for "q_proj.weight"."""
    return f"{name.removesuffix('weight')}{part}"


def read_header(file: Path) -> Iterator[StoredTensor]:
    """The tensors of one safetensors file.

    Raises:
        InvalidCheckpoint: the file cannot be read, is cut short, or is no such file.
    """
    try:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            length = int.from_bytes(opened.read(8), "little")
            if not 2 <= length <= min(LARGEST_HEADER, size - 8):
                raise InvalidCheckpoint(f"{file} is no safetensors file, or cut short")
            header = json.loads(opened.read(length))
    except (OSError, ValueError, RecursionError) as problem:
        raise InvalidCheckpoint(f"{file} cannot be read: {first_line(problem)}") from None
    if not isinstance(header, dict):
        raise InvalidCheckpoint(f"{file} has no safetensors header")
    for name, entry in header.items():
        if name != "__metadata__":
            yield _tensor(file, name, entry, 8 + length, size)


def _tensor(file: Path, name: str, entry: object, start: int, size: int) -> StoredTensor:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            is_sound = dtype in DTYPES and all(type(n) is int and n >= 0 for n in shape)
            if is_sound and 0 <= begin <= end and math.prod(shape) * DTYPES[dtype] == end - begin:
                if start + end > size:
                    raise InvalidCheckpoint(
                        f"{file} is cut short: {name} ends at byte {start + end} of {size}"
                    )
                return StoredTensor(name, file, dtype, tuple(shape), start + begin, end - begin)
    raise InvalidCheckpoint(f"{file}: the header's entry for {name!r} is corrupt")


def _shards(folder: Path) -> list[Path]:
    """The files with weights: those that the index names, or all."""
    index = folder / INDEX
    if not index.is_file():
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            _refuse_pickles(folder)
        return files
    named = read_settings(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
        raise InvalidCheckpoint(f"{index} has no weight_map")
    files = [folder / name for name in sorted(set(named.values()))]
    for file in files:
        if file.parent != folder:
            raise InvalidCheckpoint(f"{index} names {file.name} outside of its folder")
        if not file.is_file():
            raise InvalidCheckpoint(f"{file} is missing: {INDEX} names it")
    return files


def _refuse_pickles(folder: Path) -> None:
    pickles = sorted(file.name for kind in PICKLES for file in folder.glob(kind))
    if pickles:
        raise InvalidCheckpoint(
            f"{folder} holds {pickles[0]}, a pickle, which runs code when it is opened: load it "
            "where you trust it and save it with save_pretrained(folder, safe_serialization=True)"
        )


def _named(tensors: Iterable[StoredTensor]) -> Mapping[str, StoredTensor]:
    """By their names in a model of text alone."""
    found = {}
    for tensor in tensors:
        prefix = next((each for each in RENAMED if tensor.name.startswith(each)), "")
        found[RENAMED.get(prefix, "") + tensor.name.removeprefix(prefix)] = tensor
    return found


def refuse_other_shapes(checkpoint: Checkpoint) -> None:
    """Every tensor that the decoder has must be there, in its shape.

    Raises:
        InvalidCheckpoint: one that is missing, of another shape, or no floats.
    """
    folder, tensors = checkpoint.path, checkpoint.tensors
    for weights in checkpoint.decoder.weights:
        for name, _ in weights.names():
            found = tensors.get(name)
            if found is None and packed_name(name, "qweight") in tensors:
                _refuse_missing_parts(name, checkpoint)
                continue
            if found is None:
                raise InvalidCheckpoint(f"{folder} lacks {name}: give the whole checkpoint")
            if found.shape != weights.shape:
                raise InvalidCheckpoint(
                    f"{found.file}: {name} has the shape {_times(found.shape)}, and config.json "
                    f"says {_times(weights.shape)}"
                )
            if found.dtype not in FLOATS and not found.dtype.startswith(("F8", "Q")):
                raise InvalidCheckpoint(
                    f"{found.file}: {name} is stored as {found.dtype}, and not as floats"
                )


def _refuse_missing_parts(name: str, checkpoint: Checkpoint) -> None:
    for part in ("qzeros", "scales"):
        if packed_name(name, part) not in checkpoint.tensors:
            missing = packed_name(name, part)
            raise InvalidCheckpoint(f"{checkpoint.path} lacks {missing}: give the whole checkpoint")


def _times(shape: Iterable[int]) -> str:
    return " × ".join(map(str, shape)) or "a single number"
