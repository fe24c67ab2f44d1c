"""Sees on text how much inputs and layers count, and how far keys and values reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from edgebuild.llm._kernels_numpy import Floats
from edgebuild.llm.forward import Forward
from edgebuild.llm.graph import CacheScales
from edgebuild.llm.sequences import Tokens
from edgebuild.vocabulary.contracts import Progress

# The greatest code of eight bits.
TOP = np.float32(127)
# What is divided by is never nothing: heads may have kept nothing, streams may be empty.
LEAST = np.float32(1e-6)


@dataclass
class Seen:
    """What flowed through a network.

    Sums of squares by matrix, the reach of keys and values by layer, [heads, head], and how much a
    layer changes what it reads: one minus their cosine, as a mean over the tokens (ShortGPT, arXiv
    2403.03853, calls it block influence).
    """

    squares: dict[str, Floats] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    keys: dict[int, Floats] = field(default_factory=dict)
    values: dict[int, Floats] = field(default_factory=dict)
    changes: dict[int, list[Floats]] = field(default_factory=dict)

    def multiplied(self, name: str, inputs: Floats) -> None:
        added = np.square(inputs, dtype=np.float64).sum(axis=0)
        self.squares[name] = self.squares.get(name, np.float64(0)) + added
        self.tokens[name] = self.tokens.get(name, 0) + len(inputs)

    def cached(self, layer: int, keys: Floats, values: Floats) -> None:
        for reach, found in ((self.keys, keys), (self.values, values)):
            most = np.abs(found).max(axis=0)
            reach[layer] = np.maximum(reach[layer], most) if layer in reach else most

    def passed(self, layer: int, before: Floats, after: Floats) -> None:
        lengths = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
        cosines = (before * after).sum(axis=-1) / np.maximum(lengths, LEAST)
        self.changes.setdefault(layer, []).append((1 - cosines).ravel())

    @property
    def influences(self) -> Mapping[int, float]:
        """How much each layer changes what it reads."""
        return {
            layer: float(np.concatenate(found).mean(dtype=np.float64))
            for layer, found in self.changes.items()
        }

    @property
    def importances(self) -> Mapping[str, Floats]:
        """The mean square of each input, by matrix."""
        return {
            name: (squares / self.tokens[name]).astype(np.float32)
            for name, squares in self.squares.items()
        }

    @property
    def cache_scales(self) -> CacheScales:
        """Of an eight-bit cache, by channel."""
        return CacheScales(
            *([_scales(reach[n]) for n in sorted(reach)] for reach in (self.keys, self.values))
        )


def calibrate(forward: Forward, sequences: Tokens, progress: Progress) -> Seen:
    """Runs the float network on text, and looks on."""
    seen = Seen()
    forward.states(sequences, progress, seen)
    return seen


def save_importances(seen: Seen, file: Path) -> Path:
    """As `--importance` reads them."""
    save_file(dict(seen.importances), file)
    return file


def _scales(reach: Floats) -> Floats:
    found: Floats = (np.maximum(reach, LEAST) / TOP)[:, None, :].astype(np.float32)
    return found
