"""Writes a checkpoint as transformers reads it: tensors as a stream, and what is beside them."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from edgebuild.llm._kernels_numpy import Floats
from edgebuild.llm.checkpoint import DTYPES, Checkpoint, StoredTensor
from edgebuild.llm.config import Settings
from edgebuild.llm.rows import open_rows
from edgebuild.llm.text import CONFIG, GENERATION_CONFIG, write_beside
from edgebuild.vocabulary.errors import InvalidDestination

WEIGHTS = "model.safetensors"
# What goes along with the weights as it is, where it is there.
BESIDE = (
    *(CONFIG, GENERATION_CONFIG, "tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template*", "vocab.*", "merges.txt", "LICENSE*"),
)
# Weights that are read at once.
CHUNK = 2**22
NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


@dataclass(frozen=True)
class Planned:
    """A tensor that will be written: one of `NUMPY`, row by row."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def length(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype]


def write_floats(checkpoint: Checkpoint, folder: Path) -> None:
    """A whole checkpoint as the floats that it means, for programs that read safetensors alone.

    Raises:
        MissingPackage: transformers, which rebuilds the tokenizer of a GGUF file, is not installed.
    """
    names = [(name, each.shape) for each in checkpoint.decoder.weights for name, _ in each.names()]
    planned = [Planned(name, "F32", shape) for name, shape in names]
    write_tensors(folder, planned, (pieces(name, checkpoint.tensors) for name, _ in names))
    write_rest(checkpoint, checkpoint.settings, folder)


def pieces(name: str, tensors: Mapping[str, StoredTensor]) -> Iterator[Floats]:
    """A tensor's rows, some at a time."""
    with open_rows(name, tensors) as rows:
        for _, some in rows.chunks(CHUNK):
            yield some


def write_tensors(
    folder: Path, planned: Sequence[Planned], arrays: Iterable[Iterable[Floats]]
) -> None:
    """One safetensors file, each tensor a few rows at a time; on the disk when it returns.

    Raises:
        InvalidDestination: no space is left, or no right to write.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for one in planned:
        place = [at, at + one.length]
        header[one.name] = {"dtype": one.dtype, "shape": one.shape, "data_offsets": place}
        at += one.length
    text = json.dumps(header).encode()
    # Data begin at multiples of eight bytes.
    text += b" " * (-len(text) % 8)
    try:
        with (folder / WEIGHTS).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for one, some in zip(planned, arrays, strict=True):
                for piece in some:
                    file.write(piece.astype(NUMPY[one.dtype]).tobytes())
            assert file.tell() == 8 + len(text) + at
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        raise InvalidDestination(f"{folder} cannot be written: {problem.strerror}") from None


def write_rest(checkpoint: Checkpoint, settings: Settings, folder: Path) -> None:
    """config.json, and the tokenizer with whatever else the checkpoint has of it.

    Raises:
        MissingPackage: transformers, which rebuilds the tokenizer of a GGUF file, is not installed.
    """
    if checkpoint.path.is_dir():
        copy_beside(checkpoint.path, folder)
    else:
        write_beside(checkpoint, folder)
    write_settings(settings, folder)


def write_settings(settings: Settings, folder: Path) -> None:
    (folder / CONFIG).write_text(json.dumps(dict(settings), indent=1), encoding="utf-8")


def copy_beside(checkpoint: Path, folder: Path) -> None:
    """The tokenizer, what a runtime reads, and the license; nothing of a file."""
    for pattern in BESIDE:
        for file in sorted(checkpoint.glob(pattern)):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
