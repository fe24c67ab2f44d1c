"""What is done to a network: one choice per site, and the candidate that comes of it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgebuild.vocabulary.offer import Choice, Part
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.program import Program, Site

if TYPE_CHECKING:
    from pathlib import Path

    from edgebuild.vocabulary.target import RuntimeFacts

# The step of a rounding that exporters carry out, when they find the ranges of activations.
CLIP_ACTIVATIONS = "clip-activations"


@dataclass(frozen=True)
class Recipe:
    """What is done to the network, then one precision per layer, for one format.

    `reshaped` holds the choices that change the network itself, in no order: the methods' stages
    order them. `chosen` has the precision of every layer of the network that comes of it, and
    `declined` says why a layer has another one than the rest.
    """

    name: str
    format: str
    chosen: tuple[tuple[Site, Choice], ...]
    declined: tuple[tuple[Site, str], ...] = ()
    reshaped: tuple[tuple[Part, Choice], ...] = ()

    @property
    def precisions(self) -> dict[Site, Precision]:
        """The precision of every site, fp32 where no choice was made."""
        quantized = {
            site: Precision(choice.option)
            for site, choice in self.chosen
            if choice.method == "quantize"
        }
        return dict.fromkeys((site for site, _ in self.declined), Precision.FP32) | quantized

    @property
    def clips_activations(self) -> bool:
        """Whether static layers cut off rare extremes instead of covering them."""
        return any(
            CLIP_ACTIVATIONS in choice.option.replace(",", " ").split()
            for _, choice in self.reshaped
        )

    @property
    def summary(self) -> str:
        """For example "50 int8-static, 1 fp32"."""
        counts = Counter(self.precisions.values())
        return ", ".join(f"{count} {precision}" for precision, count in counts.most_common())

    @property
    def shape(self) -> tuple[tuple[str, str, str, str], ...]:
        """The changes to the network alone, as sorted words: equal for equal networks."""
        return change_words(self.reshaped)

    @property
    def is_float(self) -> bool:
        """Whether it leaves the network as it is, in the precision that it came in."""
        return not self.reshaped and set(self.precisions.values()) <= {Precision.FP32}

    @property
    def digest(self) -> str:
        """Names what is done, whatever it is called."""
        steps = sorted((site.path, *_words(choice)) for site, choice in self.chosen)
        text = json.dumps([self.format, steps, self.shape])
        return hashlib.sha256(text.encode()).hexdigest()


def change_words(reshaped: Iterable[tuple[Part, Choice]]) -> tuple[tuple[str, str, str, str], ...]:
    """Changes to a network as sorted words, for names that are made of them."""
    return tuple(sorted((part.path, part.kind.value, *_words(choice)) for part, choice in reshaped))


def _words(choice: Choice) -> tuple[str, str]:
    return choice.method, choice.option


@dataclass(frozen=True)
class Candidate:
    """A recipe applied to a network: what an exporter realizes.

    Attributes:
        recipe: what was chosen.
        program: the network as ATen operators, with its weights.
        calibration: a folder of stored samples to calibrate with, named by their content.
        runtime: the runtime that it is made for, as the target has it.
    """

    recipe: Recipe
    program: Program
    calibration: Path
    runtime: RuntimeFacts
