"""Text into tokens and back, by the tokenizer that came with a checkpoint."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgebuild.llm.checkpoint import Checkpoint
from edgebuild.llm.config import Settings, read_settings
from edgebuild.llm.sequences import Tokens, sequences_of
from edgebuild.vocabulary.errors import InputError, InvalidCheckpoint, MissingPackage, first_line

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
# Tokens of a stretch that is run at once; and how many stretches calibrate, and how many are kept
# from all choices, to prove.
STRETCH, CALIBRATING, PROVING = 256, 8, 4


@dataclass(frozen=True)
class Tokenizer:
    """A checkpoint's own tokenizer.

    `first` begins every text, if something does; each of `stops` ends an answer.
    """

    backend: Any
    first: int | None
    stops: frozenset[int]
    template: str
    names: Mapping[str, str]

    def tokens(self, text: str) -> list[int]:
        """Without what begins a text."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def text(self, tokens: Sequence[int]) -> str:
        return str(self.backend.decode(list(tokens)))

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """A conversation as the model was taught to read it; as plain text if it was not."""
        if not self.template:
            begun = [] if self.first is None else [self.first]
            return begun + self.tokens("\n".join(each["content"] for each in messages))
        written = _render(self.template, messages, self.names)
        return self.tokens(written)


@dataclass(frozen=True)
class Text:
    """What a model is calibrated on, and what it is proven on: stretches [count, tokens]."""

    name: str
    calibrating: Tokens
    proving: Tokens


def open_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer in a folder; None where there is no tokenizer.json.

    Raises:
        InvalidCheckpoint: the file is damaged.
    """
    file = folder / TOKENIZER
    if not file.is_file():
        return None
    tokenizers = importlib.import_module("tokenizers")
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as problem:
        raise InvalidCheckpoint(f"{file} cannot be read: {first_line(problem)}") from None
    told = _settings(folder / TOKENIZER_CONFIG)
    begun = backend.encode("").ids
    names = {key: str(_content(told.get(key))) for key in ("bos_token", "eos_token")}
    return Tokenizer(
        backend=backend,
        first=begun[0] if begun else None,
        stops=frozenset(_stops(folder, backend, names)),
        template=_template(folder, told),
        names=names,
    )


def write_beside(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes what a GGUF file says of its tokenizer and shapes as the usual files.

    Raises:
        MissingPackage: transformers, which rebuilds tokenizers, is not installed.
        InvalidCheckpoint: a kind of tokenizer that it cannot rebuild.
    """
    try:
        mapping = importlib.import_module("transformers.integrations.gguf.gguf_tokenizer_mapping")
    except ImportError:
        raise MissingPackage(
            f"the tokenizer of {checkpoint.path} is rebuilt by transformers: "
            "pip install 'edgebuild[hf]'"
        ) from None
    try:
        architecture, stored, told = mapping.get_gguf_tokenizer(str(checkpoint.path))
        backend, _ = mapping.convert_gguf_tokenizer(architecture, stored)
    except (KeyError, ValueError) as problem:
        raise InvalidCheckpoint(
            f"{checkpoint.path}: its tokenizer cannot be rebuilt: {first_line(problem)}"
        ) from None
    bos = told.get("bos_token")
    if told.get("add_bos_token") and bos is not None:
        processors = importlib.import_module("tokenizers.processors")
        special = [(bos, backend.token_to_id(bos))]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=special
        )
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / TOKENIZER))
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(told, indent=1), encoding="utf-8")
    (folder / CONFIG).write_text(json.dumps(dict(checkpoint.settings), indent=1), encoding="utf-8")


def read_text(file: Path, tokenizer: Tokenizer | None, source: Path, context: int) -> Text:
    """The first half of a text to calibrate on, the second to prove.

    Raises:
        InvalidCheckpoint: there is no tokenizer.
        InputError: the file cannot be read, or is too short.
    """
    if tokenizer is None:
        raise InvalidCheckpoint(
            f"{source} has no {TOKENIZER}: without it, {file} cannot be read as tokens. Save the "
            "tokenizer there with save_pretrained, or leave --text out"
        )
    tokens = tokenizer.tokens(read_written(file))
    length = min(STRETCH, context)
    if len(tokens) < 2 * length:
        raise InputError(
            f"{file} is too short: it has {len(tokens)} tokens, and {2 * length} are needed to "
            f"calibrate and to prove; {length * (CALIBRATING + PROVING)} are better"
        )
    half = len(tokens) // 2
    return Text(
        file.name,
        sequences_of(tokens[:half], length, CALIBRATING, tokenizer.first),
        sequences_of(tokens[half:], length, PROVING, tokenizer.first),
    )


def read_written(file: Path) -> str:
    """What a text file holds.

    Raises:
        InputError: it cannot be read, or is no text.
    """
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"{file} cannot be read as text: {first_line(problem)}") from None


def _settings(file: Path) -> Settings:
    return read_settings(file) if file.is_file() else {}


def _content(token: object) -> object:
    """A special token, which may be described by more than its text."""
    return token.get("content", "") if isinstance(token, dict) else token or ""


def _template(folder: Path, told: Settings) -> str:
    file = folder / CHAT_TEMPLATE
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = told.get("chat_template")
    return found if isinstance(found, str) else ""


def _stops(folder: Path, backend: Any, names: Mapping[str, str]) -> list[int]:
    for file in (GENERATION_CONFIG, CONFIG):
        match _settings(folder / file).get("eos_token_id"):
            case int(one):
                return [one]
            case [*several] if several:
                return [each for each in several if isinstance(each, int)]
    named = backend.token_to_id(names["eos_token"]) if names["eos_token"] else None
    return [] if named is None else [named]


def _render(template: str, messages: Sequence[Mapping[str, str]], names: Mapping[str, str]) -> str:
    """As transformers does it: a template is jinja's, in a sandbox."""
    sandbox = importlib.import_module("jinja2.sandbox")
    exceptions = importlib.import_module("jinja2.exceptions")

    def refuse(text: str) -> None:
        raise exceptions.TemplateError(text)

    frame = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    frame.globals["raise_exception"] = refuse
    try:
        written = frame.from_string(template).render(
            messages=messages, add_generation_prompt=True, **names
        )
    except exceptions.TemplateError as problem:
        raise InvalidCheckpoint(f"the chat template fails: {first_line(problem)}") from None
    return str(written)
