"""Surveys what could be done where: every offer and precision, with what it alone would lose."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from edgebuild import catalog
from edgebuild.cache import digest
from edgebuild.search.case import Case
from edgebuild.search.layers import layer_shapes
from edgebuild.search.menu import Weighed
from edgebuild.search.reshape import changed_once
from edgebuild.search.score import divergence
from edgebuild.search.sensitivity import Losses, sensitivity
from edgebuild.vocabulary.contracts import Method, Progress, Stage
from edgebuild.vocabulary.errors import MethodFailed, told
from edgebuild.vocabulary.offer import Choice, LayerShape, Offer, Part, PartKind, weights
from edgebuild.vocabulary.recipe import change_words
from edgebuild.vocabulary.target import RuntimeFacts

SAMPLES = 16
# Offers of one part are measured at this many of their sizes; the others lie on a line through
# them, in the logarithm of loss against the logarithm of what is taken away.
MEASURED_SIZES = 2
# Losses grow about with the square of what is taken away, where only one was measured.
EXPONENT = 2.0
NO_LOSS = 1e-9


@dataclass(frozen=True)
class Survey:
    """What could be done to one network, for one runtime's widths.

    Attributes:
        layers: every layer's shape, by its path.
        offers: what can be picked part by part, with the losses.
        students: smaller networks of the same architecture; their losses are known only after
            training.
        roundings: finer ways to round the whole network.
        zeros: ways to store layers in less, which gains nothing else.
        sensitivity: what each layer loses in each integer precision.
        dropped: offers that could not be carried out, with the reasons.
    """

    layers: Mapping[str, LayerShape]
    offers: tuple[Weighed, ...]
    students: tuple[Offer, ...]
    roundings: tuple[Choice, ...]
    zeros: tuple[Offer, ...]
    sensitivity: Losses
    dropped: Mapping[str, str]


def survey(
    case: Case, families: Sequence[str], runtime: RuntimeFacts, progress: Progress
) -> Survey:
    """Asks the methods of these names for their offers, and finds what each would lose.

    The loss of an offer is the KL divergence of the outputs on calibration samples, in nats, with
    that offer alone carried out and nothing recovered.
    """
    offers, dropped = _offers(case, families, runtime)
    parts: dict[Part, list[Offer]] = {}
    for offer in offers:
        if offer.part.kind is not PartKind.NETWORK:
            parts.setdefault(offer.part, []).append(offer)
    examiner = Examiner(case)
    weighed: list[Weighed] = []
    with progress.step("Surveying changes", total=len(parts)) as step:
        for part, of_part in parts.items():
            try:
                weighed += _weighed(examiner, of_part)
            except MethodFailed as error:
                dropped[_at(of_part[0].choice.method, part.path)] = told(error)
            step.advance(part.path)
    return Survey(
        layers=examiner.layers,
        offers=tuple(weighed),
        students=tuple(offer for offer in offers if offer.part.kind is PartKind.NETWORK),
        roundings=tuple(_roundings(case, families, runtime)),
        zeros=tuple(_zeros(case, families, runtime)),
        sensitivity=sensitivity(case, progress),
        dropped=dropped,
    )


def _offers(
    case: Case, families: Sequence[str], runtime: RuntimeFacts
) -> tuple[list[Offer], dict[str, str]]:
    """What the methods offer that change layers, and why any method does not offer more."""
    offers: list[Offer] = []
    dropped: dict[str, str] = {}
    for name in families:
        if name == catalog.QUANTIZE:
            continue
        method = _method(case, name)
        try:
            for path, reason in method.declined(case.lesson, runtime).items():
                dropped[_at(name, path)] = reason
            if method.stage in (Stage.SHRINK, Stage.FACTORIZE):
                offers += method.offers(case.lesson, runtime)
        except MethodFailed as error:
            dropped[name] = told(error)
    return offers, dropped


def _at(method: str, path: str) -> str:
    return f"{method} at {path}" if path else method


def _method(case: Case, name: str) -> Method:
    """The method, told whether what is stored has to be small, if it asks."""
    method = catalog.method(name)
    if any(setting.name == "storage_binds" for setting in fields(method)):  # type: ignore[arg-type]
        return replace(method, storage_binds=case.budget.download is not None)  # type: ignore[type-var]
    return method


def _zeros(case: Case, families: Sequence[str], runtime: RuntimeFacts) -> Iterator[Offer]:
    for name in families:
        if name != catalog.QUANTIZE and catalog.method(name).stage is Stage.RECOVER:
            offers = _method(case, name).offers(case.lesson, runtime)
            yield from (offer for offer in offers if offer.part.kind is PartKind.LAYER)


def _roundings(case: Case, families: Sequence[str], runtime: RuntimeFacts) -> Iterator[Choice]:
    for name in families:
        if name != catalog.QUANTIZE and catalog.method(name).stage is Stage.ROUND:
            yield from (offer.choice for offer in catalog.method(name).offers(case.lesson, runtime))


def _weighed(examiner: Examiner, offers: Sequence[Offer]) -> Iterator[Weighed]:
    """The offers of one part with their losses: of each form a few measured, others between."""
    forms: dict[str, list[Offer]] = {}
    for offer in offers:
        # "tucker 8 x 24" and "spatial 16" lose differently at the same size.
        forms.setdefault(offer.choice.form, []).append(offer)
    for form in forms.values():
        taken = np.log([max(_taken_away(offer, examiner.layers), 1e-6) for offer in form])
        chosen = _spread(len(form), MEASURED_SIZES, np.argsort(taken))
        known = {index: math.log(examiner.loss(form[index])) for index in chosen}
        for index, offer in enumerate(form):
            yield Weighed(offer, math.exp(_interpolated(taken[index], taken, known)))


def _spread(count: int, wanted: int, order: np.ndarray) -> list[int]:
    """As many places as wanted, at even distances inside the order."""
    places = {round((place + 1) * (count - 1) / (wanted + 1)) for place in range(wanted)}
    return [int(order[place]) for place in sorted(places)]


def _interpolated(at: float, taken: np.ndarray, known: Mapping[int, float]) -> float:
    points = sorted((float(taken[index]), loss) for index, loss in known.items())
    if len(points) == 1 or points[-1][0] - points[0][0] < 1e-9:
        return points[0][1] + EXPONENT * (at - points[0][0])
    (x0, y0), (x1, y1) = points[0], points[-1]
    # More taken away never loses less, whatever chance made of the samples.
    slope = max((y1 - y0) / (x1 - x0), 0.5)
    middle = ((x0 + x1) / 2, (y0 + y1) / 2)
    return float(middle[1] + slope * (at - middle[0]))


def _taken_away(offer: Offer, layers: Mapping[str, LayerShape]) -> float:
    """Which share of the part's own channels or weights goes."""
    if offer.removed:
        return 1.0
    if offer.outputs:
        path, kept = max(offer.outputs.items(), key=lambda item: layers[item[0]].outputs)
        return 1 - kept / layers[path].outputs
    path, shapes = next(iter(offer.replaced.items()))
    return 1 - sum(weights(shape) for shape in shapes) / weights(layers[path])


@dataclass(frozen=True)
class Examiner:
    """Finds what offers lose; what all of them are compared with is computed once."""

    case: Case

    @cached_property
    def layers(self) -> dict[str, LayerShape]:
        return layer_shapes(self.case.program)

    @cached_property
    def _rows(self) -> list[tuple[torch.Tensor, ...]]:
        return [tuple(map(torch.tensor, row)) for row in self.case.calibration.rows(SAMPLES)]

    @cached_property
    def _wanted(self) -> list[np.ndarray]:
        return _outputs(self.case.lesson.network, self._rows)

    def loss(self, offer: Offer) -> float:
        """KL of the outputs with this offer alone carried out, in nats.

        Raises:
            MethodFailed: it cannot be carried out, or makes the outputs NaN.
        """
        case = self.case

        def make(folder: Path) -> None:
            network = changed_once(case, offer.part, offer.choice)
            found = divergence(_outputs(network, self._rows), self._wanted)
            (folder / "loss.json").write_text(json.dumps(found))

        change = change_words([(offer.part, offer.choice)])
        key = digest(case.program.fingerprint, case.calibration.digest, SAMPLES, change)
        entry = case.cache.entry("offer", key, make)
        loss = float(json.loads((entry / "loss.json").read_text()))
        if not math.isfinite(loss):
            raise MethodFailed(f"{offer.part.path}: {offer.choice.option} makes the outputs NaN")
        return max(loss, NO_LOSS)


def _outputs(network: nn.Module, rows: Iterable[tuple[torch.Tensor, ...]]) -> list[np.ndarray]:
    with torch.no_grad():
        # Copied: a network may write into its inputs.
        answers = (network(*(tensor.clone() for tensor in row)) for row in rows)
        columns = zip(*(pytree.tree_leaves(answer) for answer in answers), strict=True)
        return [torch.cat(column).numpy() for column in columns]
