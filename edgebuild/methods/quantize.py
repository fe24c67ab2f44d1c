"""Quantizes weight by weight: offers each layer the precisions that have fast kernels there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgebuild.vocabulary.offer import Choice
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.program import Site
from edgebuild.vocabulary.target import RuntimeFacts


@dataclass(frozen=True)
class Quantize:
    """Post-training quantization, per layer."""

    def choices(
        self, sites: Sequence[Site], runtime: RuntimeFacts
    ) -> Iterator[tuple[Site, Choice]]:
        for site in sites:
            for precision in runtime.kernels.get(site.kind, ()):
                yield site, Choice("quantize", precision)

    def refusal(self, site: Site, choice: Choice, runtime: RuntimeFacts) -> str:
        offered = runtime.kernels.get(site.kind, ())
        if Precision(choice.option) in offered:
            return ""
        return f"the target has no fast {choice.option} kernel for {site.kind} in {runtime.name}"
