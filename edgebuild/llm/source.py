"""Opens whatever a decoder comes in: a folder of safetensors, a config.json, or a GGUF file."""

from __future__ import annotations

from pathlib import Path

from edgebuild.llm.checkpoint import Checkpoint, load_checkpoint
from edgebuild.llm.config import FAMILIES, read_settings
from edgebuild.llm.gguf import load_gguf
from edgebuild.vocabulary.errors import InvalidCheckpoint

# What ends the name of a decoder's class, and of one that sees, too.
GENERATIVE, MULTIMODAL = ("ForCausalLM", "LMHeadModel"), "ForConditionalGeneration"


def open_source(path: Path) -> Checkpoint:
    """The decoder there, with what is stored of it.

    Raises:
        InvalidCheckpoint: no decoder that is known, or one that is not whole.
    """
    return load_gguf(path) if path.suffix == ".gguf" else load_checkpoint(path)


def is_decoder(path: Path) -> bool:
    """Whether this is a language model's checkpoint, and no other network's, known or not."""
    if path.suffix == ".gguf":
        return True
    config = path / "config.json"
    if not config.is_file():
        return False
    try:
        settings = read_settings(config)
    except InvalidCheckpoint:
        return False
    is_known = settings.get("model_type") in FAMILIES
    made_for = settings.get("architectures")
    if isinstance(made_for, list) and made_for:
        made = str(made_for[0])
        return made.endswith(GENERATIVE) or (is_known and made.endswith(MULTIMODAL))
    return is_known
