"""Smaller models of the same lineage, from a table of well-known ones."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgebuild.llm.config import read_decoder
from edgebuild.vocabulary.decoder import Decoder

TABLE = Path(__file__).with_name("families.toml")


@dataclass(frozen=True)
class Known:
    """A well-known model; `teacher` is what it was distilled from, empty where nothing is said."""

    decoder: Decoder
    lineage: str
    teacher: str
    published: float
    source: str


@dataclass(frozen=True)
class Sibling:
    """A smaller model, and in which words it is one."""

    decoder: Decoder
    relation: str


@functools.cache
def known_models() -> tuple[Known, ...]:
    """The table, largest first."""
    rows = tomllib.loads(TABLE.read_text(encoding="utf-8"))["model"]
    known = [
        Known(
            read_decoder(row["config"], row["name"], TABLE.name),
            row["lineage"],
            row.get("teacher", ""),
            row["billions"] * 1e9,
            row["source"],
        )
        for row in rows
    ]
    return tuple(sorted(known, key=lambda model: -model.decoder.parameters))


def smaller_siblings(decoder: Decoder) -> Iterator[Sibling]:
    """Those with fewer parameters, largest first; where no relative is known, any model.

    A model is recognized by its shapes; of an unknown one, those of its model type are relatives.
    """
    smaller = [m for m in known_models() if m.decoder.parameters < decoder.parameters]
    alike = _alike(decoder)
    names = {model.decoder.name for model in alike}
    lineages = {model.lineage for model in alike} or {
        model.lineage for model in known_models() if model.decoder.family == decoder.family
    }
    relatives = [m for m in smaller if m.lineage in lineages or m.teacher in names]
    # What learned from the model itself comes before what only shares its name.
    for model in sorted(relatives, key=lambda model: model.teacher not in names):
        yield Sibling(model.decoder, _relation(model, names))
    for model in smaller:
        if model not in relatives:
            yield Sibling(model.decoder, "another, smaller model")


def _alike(decoder: Decoder) -> list[Known]:
    """The models that it may be: by shapes; of several the one of its name, or the originals."""
    alike = [model for model in known_models() if _has_shapes_of(model.decoder, decoder)]
    named = [model for model in alike if model.decoder.name == decoder.name]
    return named or [model for model in alike if not model.teacher] or alike


def _has_shapes_of(one: Decoder, other: Decoder) -> bool:
    return (one.family, one.parameters, one.layers, one.hidden) == (
        *(other.family, other.parameters, other.layers, other.hidden),
    )


def _relation(model: Known, names: set[str]) -> str:
    return "a model distilled from it" if model.teacher in names else "a smaller sibling"
