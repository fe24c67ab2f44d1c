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
    """Post-training quantization, per layer.

    Attributes:
        storage_binds: whether storage is what a network must be made smaller for. Then the forms of
            storage that have no kernel are offered too, after all that have one.
    """

    storage_binds: bool = False

    def choices(
        self, sites: Sequence[Site], runtime: RuntimeFacts
    ) -> Iterator[tuple[Site, Choice]]:
        stored = [precision for precision in Precision if precision.is_storage_only]
        for site in sites:
            offered = runtime.kernels.get(site.kind, ())
            for precision in offered:
                yield site, Choice("quantize", precision)
            for precision in stored:
                if self.storage_binds and precision not in offered:
                    yield site, Choice("quantize", precision)

    def refusal(self, site: Site, choice: Choice, runtime: RuntimeFacts) -> str:
        precision = Precision(choice.option)
        if precision in runtime.kernels.get(site.kind, ()):
            return ""
        if precision.is_storage_only:
            return "" if self.storage_binds else "no kernel on this runtime: storage only"
        return f"the target has no fast {precision} kernel for {site.kind} in {runtime.name}"
