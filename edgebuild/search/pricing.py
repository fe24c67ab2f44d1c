"""Prices what can be picked in each format: measured on this machine, predicted for any other."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from edgebuild.search.case import Case
from edgebuild.search.costs import (
    LayerCosts,
    family,
    family_grid,
    glue_of,
    measure_costs,
    profile_overhead,
)
from edgebuild.search.estimate import predict_call, predict_glue, predict_layer, retimed
from edgebuild.search.make import Made
from edgebuild.search.menu import NO_TIME, Menu
from edgebuild.search.survey import Survey
from edgebuild.search.uniform import exporters_of, next_best, refusal
from edgebuild.vocabulary.artifact import Arithmetic, Census
from edgebuild.vocabulary.contracts import Exporter, Progress
from edgebuild.vocabulary.offer import LayerShape, macs
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.program import Site
from edgebuild.vocabulary.target import Budget, RuntimeFacts
from edgebuild.vocabulary.units import Seconds

# Precisions that lose nothing that could be told from noise.
EXACT = (Precision.FP32, Precision.FP16)
# What a call of either runtime takes beside its kernels: an empty network, measured on x86.
CALL = Seconds(4e-6)
# How many of the thin layers that could replace one are timed; the others lie between.
TYPICAL = 4


def menus(
    case: Case,
    survey: Survey,
    made: Sequence[Made],
    formats: Sequence[str],
    precisions: Sequence[Precision],
    progress: Progress,
) -> dict[str, Menu]:
    """One menu a format: measured costs where this machine is the target, else predicted ones."""
    return {
        exporter.format: _menu(case, survey, made, exporter, runtime, precisions, progress)
        for exporter, runtime in exporters_of(case.target, formats)
    }


def _menu(
    case: Case,
    survey: Survey,
    made: Sequence[Made],
    exporter: Exporter,
    runtime: RuntimeFacts,
    precisions: Sequence[Precision],
    progress: Progress,
) -> Menu:
    offered = {
        site.path: _losses(survey, site, exporter, runtime, _worthwhile(case.budget, precisions))
        for site in case.program.sites
        if site.path in survey.layers
    }
    layers = {path: (survey.layers[path],) for path in offered}
    if not case.target.is_this_machine:

        @functools.cache
        def predicted(shape: LayerShape, precision: Precision) -> Seconds:
            return predict_layer(shape, precision, case.target, runtime)

        return _predicted_menu(case, survey, made, exporter, runtime, layers, offered, predicted)
    wanted = list(_shapes_to_measure(survey, offered, runtime))
    costs = LayerCosts(measure_costs(wanted, exporter.format, runtime, case.cache, progress))

    @functools.cache
    def measured(shape: LayerShape, precision: Precision) -> Seconds:
        try:
            return costs.seconds(shape, precision)
        except LookupError:
            # It could not be timed, as was said; better a rough cost than none.
            return predict_layer(shape, precision, case.target, runtime)

    own = _unreshaped(made, exporter)
    overhead = profile_overhead(exporter.format, runtime, case.cache, progress)
    return Menu(
        layers,
        survey.offers,
        offered,
        measured,
        _glue(case, own, overhead),
        fixed=CALL,
        conversion=_conversion(case, own),
    )


def _predicted_menu(
    case: Case,
    survey: Survey,
    made: Sequence[Made],
    exporter: Exporter,
    runtime: RuntimeFacts,
    layers: Mapping[str, tuple[LayerShape, ...]],
    offered: Mapping[str, Mapping[Precision, float]],
    predicted: Callable[[LayerShape, Precision], Seconds],
) -> Menu:
    """The costs on another machine: of a probed one, what lies between the layers is known too."""
    own = [
        replace(one, census=Census(tuple(runs)))
        for one in _unreshaped(made, exporter)
        if (runs := retimed(one.census.runs, case.target, runtime))
    ]
    return Menu(
        layers,
        survey.offers,
        offered,
        predicted,
        (own and _glue(case, own, NO_TIME)) or predict_glue(case.program, case.target, runtime),
        fixed=predict_call(case.program, case.target, runtime),
        conversion=_conversion(case, own),
    )


def _unreshaped(made: Sequence[Made], exporter: Exporter) -> list[Made]:
    return [one for one in made if one.recipe.format == exporter.format and not one.recipe.reshaped]


def _worthwhile(budget: Budget, precisions: Sequence[Precision]) -> list[Precision]:
    """Halves are computed as fp32 is: only those ask for them who have little room."""
    is_tight = budget.storage is not None or budget.memory is not None
    is_wanted = is_tight or Precision.FP32 not in precisions
    return [one for one in precisions if is_wanted or one is not Precision.FP16]


def _losses(
    survey: Survey,
    site: Site,
    exporter: Exporter,
    runtime: RuntimeFacts,
    precisions: Sequence[Precision],
) -> dict[Precision, float]:
    """The precisions that a layer may have, with what each loses.

    Those that were asked for; where it can have none of them, what stands in for the first.
    """
    found = {Precision.FP32: 0.0} if Precision.FP32 in precisions else {}
    for precision in precisions:
        loss = 0.0 if precision in EXACT else survey.sensitivity.get((site, precision))
        if loss is not None and not refusal(site, precision, exporter, runtime):
            found[precision] = loss
    if found or not precisions:
        return found or {Precision.FP32: 0.0}
    given = next_best(site, precisions[0], exporter, runtime)
    return {given: 0.0 if given in EXACT else survey.sensitivity.get((site, given), 0.0)}


def _shapes_to_measure(
    survey: Survey, offered: Mapping[str, Mapping[Precision, float]], runtime: RuntimeFacts
) -> Iterator[tuple[LayerShape, Precision]]:
    """Each layer as it is, in a few widths where it may be narrowed, and what may replace it."""
    offers = [weighed.offer for weighed in survey.offers] + list(survey.students)
    narrowed = {path for offer in offers for path in (*offer.outputs, *offer.inputs)}
    for path, precisions in offered.items():
        shape = survey.layers[path]
        is_narrowed = path in narrowed
        shapes = family_grid(shape, runtime.channel_multiple) if is_narrowed else [shape]
        thin = [one for offer in offers for one in offer.replaced.get(path, ())]
        for one in (*shapes, *_typical(thin)):
            for precision in precisions:
                yield one, precision


def _typical(shapes: Iterable[LayerShape]) -> Iterator[LayerShape]:
    """Of layers that differ in their widths alone a few, from the smallest to the largest."""
    families: dict[LayerShape, set[LayerShape]] = {}
    for shape in shapes:
        families.setdefault(family(shape), set()).add(shape)
    for members in families.values():
        ordered = sorted(members, key=lambda shape: (macs(shape), shape.inputs))
        last = len(ordered) - 1
        places = {round(place * last / (TYPICAL - 1)) for place in range(TYPICAL)}
        yield from (ordered[place] for place in sorted(places))


def _glue(case: Case, made: Sequence[Made], overhead: Seconds) -> Mapping[str, Seconds]:
    """The weightless operators' times in the fastest artifact that was made."""
    if not made:
        return {}
    quickest = min(made, key=lambda one: sum(run.seconds for run in one.census.runs))
    return glue_of(quickest.census.runs, case.program, overhead)


def _conversion(case: Case, made: Sequence[Made]) -> Seconds:
    """What the integer artifacts took to convert their inputs and outputs, by element."""
    elements = sum(math.prod(tensor.shape) for tensor in case.workload.example)
    taken = [
        sum(run.seconds for run in one.census.runs if run.arithmetic is Arithmetic.CONVERSION)
        for one in made
    ]
    converting = [seconds for seconds in taken if seconds > 0]
    return Seconds(min(converting) / elements) if converting else NO_TIME
