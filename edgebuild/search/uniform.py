"""The recipes that every network is first tried with: one precision for all, and a few mixes."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from edgebuild import catalog
from edgebuild.search.case import Case
from edgebuild.search.sensitivity import Losses
from edgebuild.vocabulary.contracts import Exporter, Precisions
from edgebuild.vocabulary.offer import Choice
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.program import Program, Site
from edgebuild.vocabulary.recipe import Recipe
from edgebuild.vocabulary.target import Budget, RuntimeFacts, Target

# Which share of the layers a mixed recipe keeps in float.
SPARED_SHARES = (0.02, 0.06, 0.12)
MIXABLE = (Precision.INT8_STATIC, Precision.INT8_DYNAMIC)
SPARED = "kept in float: among the {count} most sensitive layers"


def worth_trying(budget: Budget, program: Program) -> tuple[Precision, ...]:
    """The precisions to try where none were asked for: mere storage where floats would not fit."""
    limits = [size for size in (budget.storage, budget.download) if size is not None]
    floats = 4 * sum(operator.weights for operator in program.operators)
    is_tight = min(limits, default=math.inf) < floats
    return tuple(one for one in Precision if is_tight or not one.is_storage_only)


def uniform_recipes(
    case: Case,
    sensitivity: Losses,
    formats: Sequence[str],
    precisions: Sequence[Precision],
) -> list[Recipe]:
    """One precision wherever it has a kernel, and mixes that spare the most sensitive layers.

    For every format whose runtime the target has; no recipe twice. Layers are spared only where
    fp32 is among the precisions: who asks for int8-static alone wants all of the network in it.
    """
    planned: dict[str, Recipe] = {}
    for exporter, runtime in exporters_of(case.target, formats):
        for recipe in _recipes(case.program.sites, exporter, runtime, sensitivity, precisions):
            planned.setdefault(recipe.digest, recipe)
    return list(planned.values())


def exporters_of(target: Target, formats: Sequence[str]) -> Iterator[tuple[Exporter, RuntimeFacts]]:
    """The formats that the target can run, each with the runtime that runs it there."""
    for runtime in target.runtimes:
        for name in formats:
            exporter = catalog.exporter(name)
            if exporter.runtime == runtime.name:
                yield exporter, runtime


def _recipes(
    sites: Sequence[Site],
    exporter: Exporter,
    runtime: RuntimeFacts,
    sensitivity: Losses,
    precisions: Sequence[Precision],
) -> Iterator[Recipe]:
    for precision in precisions:
        recipe = uniform(precision, sites, exporter, runtime)
        reached = recipe.precisions.values()
        # A network without layers to choose for is still one to export.
        if precision is not Precision.FP32 and precision not in reached:
            continue
        yield recipe
        if Precision.FP32 in precisions and precision in MIXABLE and _is_mostly(precision, recipe):
            yield from _mixed(recipe, precision, sensitivity)


def uniform(
    precision: Precision, sites: Sequence[Site], exporter: Exporter, runtime: RuntimeFacts
) -> Recipe:
    """The precision wherever it has a kernel, and elsewhere the next best with the reason."""
    wanted = dict.fromkeys((site.path for site in sites), precision)
    return fitted(Recipe(precision, exporter.format, ()), wanted, sites, exporter, runtime)


def fitted(
    recipe: Recipe,
    wanted: Mapping[str, Precision],
    sites: Sequence[Site],
    exporter: Exporter,
    runtime: RuntimeFacts,
) -> Recipe:
    """The recipe with a precision for every site of the network that it makes.

    A site takes what is wanted at its path or, where a layer was replaced by several, at its
    parent's; where that has no kernel the next best, with the reason.
    """
    chosen, declined = [], []
    for site in sites:
        parent = site.path.rpartition(".")[0]
        precision = wanted.get(site.path, wanted.get(parent, Precision.FP32))
        reason = refusal(site, precision, exporter, runtime)
        given = next_best(site, precision, exporter, runtime) if reason else precision
        chosen.append((site, Choice("quantize", given)))
        if reason:
            declined.append((site, f"{reason}: {given}"))
    return replace(recipe, chosen=tuple(chosen), declined=tuple(declined))


def refusal(site: Site, precision: Precision, exporter: Exporter, runtime: RuntimeFacts) -> str:
    """Why a site cannot have a precision in this format on this target; empty where it can."""
    if precision is Precision.FP32:
        return ""
    return exporter.refusal(site.kind, precision) or _quantize().refusal(
        site, Choice("quantize", precision), runtime
    )


@functools.cache
def _quantize() -> Precisions:
    """Looked up once: the look-up reads what is installed, and every site asks for it."""
    return catalog.precisions()


def next_best(
    site: Site, refused: Precision, exporter: Exporter, runtime: RuntimeFacts
) -> Precision:
    """What a site gets instead of a precision that it cannot have: the target's first preference.

    Only four-bit recipes fall back to other integers.
    """
    for precision in runtime.kernels.get(site.kind, ()):
        if precision.is_integer and refused is not Precision.INT4_WEIGHTS:
            continue
        if precision is not refused and not refusal(site, precision, exporter, runtime):
            return precision
    return Precision.FP32


def _is_mostly(precision: Precision, recipe: Recipe) -> bool:
    chosen = list(recipe.precisions.values())
    return chosen.count(precision) * 2 > len(chosen)


def _mixed(recipe: Recipe, mixed: Precision, sensitivity: Losses) -> Iterator[Recipe]:
    """The recipe with its k most sensitive integer layers left in fp32, for a few k."""
    integer = [site for site, precision in recipe.precisions.items() if precision.is_integer]
    ranked = sorted(integer, key=lambda site: -sensitivity.get((site, mixed), 0.0))
    counts = {max(1, round(share * len(integer))) for share in SPARED_SHARES}
    for count in sorted(count for count in counts if count < len(integer)):
        spared = set(ranked[:count])
        chosen = tuple(
            (site, Choice("quantize", Precision.FP32) if site in spared else choice)
            for site, choice in recipe.chosen
        )
        reasons = [(site, SPARED.format(count=count)) for site in ranked[:count]]
        yield Recipe(
            name=f"{recipe.name}, {count} in float",
            format=recipe.format,
            chosen=chosen,
            declined=(*recipe.declined, *reasons),
        )
