"""One recipe that was tried: what became of it, with every figure's evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgebuild.vocabulary.artifact import Census
from edgebuild.vocabulary.measurement import Figure
from edgebuild.vocabulary.recipe import Recipe
from edgebuild.vocabulary.verdict import Verdict


@dataclass(frozen=True)
class Parity:
    """How far an artifact's outputs are from its network's, over `samples` samples.

    `relative_error` is the largest error over the largest magnitude of the same output;
    `signal_to_noise` is in dB over everything.
    """

    samples: int
    max_error: float
    relative_error: float
    signal_to_noise: float


@dataclass(frozen=True)
class Trial:
    """A recipe with its figures and verdict, or with the reason why it came to nothing.

    `figures` are named like the budget's lines, beside `score` and `latency_p50`.
    """

    recipe: Recipe
    figures: Mapping[str, Figure] = field(default_factory=dict)
    verdict: Verdict = field(default_factory=lambda: Verdict(()))
    parity: Parity | None = None
    census: Census | None = None
    failure: str = ""

    @property
    def score(self) -> float:
        """The score on the split that it was tried on; minus infinity for a failure."""
        return self.figures["score"].value if "score" in self.figures else float("-inf")
