"""Refuses at the start what would come to nothing in the end, after all the work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgebuild import catalog
from edgebuild.search.case import Case
from edgebuild.search.make import export
from edgebuild.search.uniform import exporters_of, refusal, uniform_recipes, worth_trying
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.errors import InputError, NotExportable
from edgebuild.vocabulary.precision import Precision

# Reasons that are told; the others are mostly the same for another kind of layer.
TOLD = 3


def refuse_hopeless(
    case: Case, formats: Sequence[str], precisions: Sequence[Precision], progress: Progress
) -> None:
    """What no layer can have in any format, and what no format has operators for.

    The trial exports are the first ones of the search, which finds them in the cache.

    Raises:
        InputError: no layer can be stored and run in any precision that was asked for.
        NotExportable: the network has an operator that none of the formats has.
    """
    recipes = uniform_recipes(case, {}, formats, precisions)
    if not recipes:
        raise InputError(_no_precision(case, formats, precisions))
    was_asked = set(precisions) != set(worth_trying(case.budget, case.program))
    for precision in precisions if was_asked else ():
        if not uniform_recipes(case, {}, formats, [precision]):
            reasons = "; ".join(_reasons(case, formats, [precision]))
            progress.say(f"{precision} is left out, no layer can have it: {reasons}")
        elif precision.is_storage_only:
            progress.say(f"{precision} has no kernel anywhere: it saves storage, and nothing else")
    failed: dict[str, str] = {}
    with progress.step("Trying an export") as step:
        for recipe in sorted(recipes, key=lambda recipe: not recipe.is_float):
            if recipe.format in failed:
                continue
            try:
                export(case, recipe)
                return
            except NotExportable as error:
                failed[recipe.format] = str(error)
            except Exception:
                # Converters raise whatever they like: of this one, another recipe may be made.
                return
            step.advance(recipe.format)
    others = [name for name in _formats(case) if name not in formats]
    elsewhere = f"try --format {' or '.join(others)}, " if others else ""
    raise NotExportable(
        f"the network cannot be exported: {'; '.join(failed.values())}. To build it, {elsewhere}"
        "write the operator with others, or leave that part of the network to the code around it"
    )


def _no_precision(case: Case, formats: Sequence[str], precisions: Sequence[Precision]) -> str:
    asked = " or ".join(precisions)
    reasons = "; ".join(_reasons(case, formats, precisions))
    usual = worth_trying(case.budget, case.program)
    here = [one for one in usual if uniform_recipes(case, {}, formats, [one])]
    elsewhere = [
        f"--format {name}"
        for name in _formats(case)
        if name not in formats and uniform_recipes(case, {}, [name], precisions)
    ]
    steps = " or ".join([*elsewhere, "--precision " + ", ".join(here)])
    return (
        f"no layer of the network can be {asked} in {' or '.join(formats)} on {case.target.name}"
        f"{f': {reasons}' if reasons else ', which has no layers to choose for'}. Try {steps}"
    )


def _reasons(case: Case, formats: Sequence[str], precisions: Sequence[Precision]) -> list[str]:
    return list(dict.fromkeys(_refusals(case, formats, precisions)))[:TOLD]


def _refusals(case: Case, formats: Sequence[str], precisions: Sequence[Precision]) -> Iterator[str]:
    for exporter, runtime in exporters_of(case.target, formats):
        for precision in precisions:
            for site in case.program.sites:
                if reason := refusal(site, precision, exporter, runtime):
                    yield f"{exporter.format}: {reason}"


def _formats(case: Case) -> list[str]:
    """All that the target can run."""
    return [each.format for each, _ in exporters_of(case.target, catalog.names("exporters"))]
