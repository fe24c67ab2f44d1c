"""Opens whatever a decoder comes in: a folder of safetensors, a config.json, or a GGUF file."""

from __future__ import annotations

from pathlib import Path

from edgebuild.llm.checkpoint import Checkpoint, load_checkpoint
from edgebuild.llm.gguf import load_gguf


def open_source(path: Path) -> Checkpoint:
    """The decoder there, with what is stored of it.

    Raises:
        InvalidCheckpoint: no decoder that is known, or one that is not whole.
    """
    return load_gguf(path) if path.suffix == ".gguf" else load_checkpoint(path)
