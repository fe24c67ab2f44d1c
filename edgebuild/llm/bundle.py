"""A language model's bundle: a folder with its weights, graph, loader, tokenizer and manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from edgebuild.bundles.manifest import damaged
from edgebuild.bundles.pack import file_digest
from edgebuild.bundles.verify import refuse_changed_files
from edgebuild.generate import MANIFEST, PREPACKED
from edgebuild.llm.journal import JOURNAL
from edgebuild.llm.store import DATA, hash_of, load_index
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.errors import InvalidBundle
from edgebuild.vocabulary.language_model import SCHEMA, LanguageModel

FILE = MANIFEST
LOADER = "run.py"
PAGE = "report.html"
# Not part of what was proven: the weights have an index, the journal is for going on, and what is
# prepacked was made by the device.
APART = (FILE, DATA, JOURNAL)
# What LiteRT-LM leaves beside a .litertlm that it has run.
REPACKED = ".xnnpack_cache"

_FORM = TypeAdapter(LanguageModel)


def is_language_model(folder: Path) -> bool:
    """Whether the folder is a bundle of this kind, or holds the weights for one."""
    return (folder / FILE).is_file() or (folder / DATA).is_file()


def load_model(folder: Path) -> LanguageModel:
    """Reads a bundle's manifest.

    Raises:
        InvalidBundle: no bundle, a damaged manifest, or one of another schema.
    """
    file = folder / FILE
    try:
        model = _FORM.validate_json(file.read_bytes())
    except OSError:
        raise InvalidBundle(_no_bundle(folder)) from None
    except ValidationError as error:
        raise damaged(file, error) from None
    if model.schema != SCHEMA:
        raise InvalidBundle(f"{file} has schema {model.schema}; this edgebuild reads {SCHEMA}")
    return model


def _no_bundle(folder: Path) -> str:
    if not (folder / DATA).is_file():
        return f"{folder} is no language model's bundle: it has no {FILE}"
    return (
        f"{folder} holds a language model's weights alone, as `edgebuild convert` writes them, and "
        "is no bundle: `edgebuild build CHECKPOINT -t TARGET` makes one. To check the weights, run "
        "the same `edgebuild convert` again"
    )


def write_model(folder: Path, model: LanguageModel) -> LanguageModel:
    """Adds the hashes of all files, and writes the manifest last."""
    model = replace(model, files={path: file_digest(folder / path) for path in _files(folder)})
    part = folder / f"{FILE}.part"
    part.write_bytes(_FORM.dump_json(model, indent=1))
    os.replace(part, folder / FILE)
    return model


def as_json(model: LanguageModel) -> dict[str, object]:
    found: dict[str, object] = json.loads(_FORM.dump_json(model))
    return found


def verify_model(folder: Path, progress: Progress) -> int:
    """Compares every file, and every array of the weights, with its hash; returns how many.

    Raises:
        InvalidBundle: one that is missing, changed or added.
    """
    model = load_model(folder)
    refuse_changed_files(folder, model.files, _files(folder))
    if model.format == "onnx":
        _refuse_changed_weights(folder, progress)
    return len(model.files) + 1


def _refuse_changed_weights(folder: Path, progress: Progress) -> None:
    entries = load_index(folder).entries
    try:
        data = os.open(folder / DATA, os.O_RDONLY)
    except OSError:
        raise InvalidBundle(f"{folder}: {DATA} is missing: build it again") from None
    try:
        with progress.step("check the weights", len(entries)) as bar:
            for entry in entries:
                if any(hash_of(data, piece) != piece.sha256 for piece in entry.pieces):
                    raise InvalidBundle(f"{folder}: {entry.name} was changed since it was built")
                bar.advance()
    finally:
        os.close(data)


def _files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        is_apart = name.parts[0] in (PREPACKED, "__pycache__") or str(name) in APART
        if path.is_file() and not is_apart and path.suffix != REPACKED:
            yield name.as_posix()
