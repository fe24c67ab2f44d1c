"""Corrects what the planner believes by what was measured of the candidates that it planned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.optimize import least_squares

from edgebuild.catalog import QUANTIZE
from edgebuild.search.menu import Menu
from edgebuild.vocabulary.offer import LayerShape
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.units import Seconds

# What the shortest training leaves of one nat that the network has lost: where learning starts.
RECOVERED = 0.1
# What is left grows with this power of what was lost: training forgets much of what was done to
# the network, so that four times the loss may be twice as much in the end.
POWER, POWERS = 0.5, (0.1, 1.0)
# The power of the steps that training takes from it, from so many steps on.
RECOVERY, SHORTEST = 0.5, 50
# How many candidates' worth of certainty the start has.
PRIOR_WEIGHT = 1.0
# Losses below this, in nats, are noise.
FLOOR = 1e-5


# A format, and whether there are integer kernels among its kernels: these are off by themselves.
Kernels = tuple[str, bool]


@dataclass(frozen=True)
class Observation:
    """One candidate, as planned and as measured: seconds, and nats.

    Losses are planned by the form of choices. `steps` is how long it was trained to recover;
    `has_integers` tells whether layers compute in integers.
    """

    format: str
    planned_latency: float
    measured_latency: float
    planned_losses: Mapping[str, float]
    measured_loss: float
    steps: int = 0
    has_integers: bool = False

    @property
    def kernels(self) -> Kernels:
        return self.format, self.has_integers


@dataclass(frozen=True)
class Beliefs:
    """What the planner's latencies and losses really come to.

    Attributes:
        latency: by what planned latencies are to be multiplied, by kernels.
        loss: what is left of one nat that a form of choices loses, after the shortest training;
            training takes nothing from what quantization loses.
        power: with which power of the planned loss that grows.
        recovery: with which power of the steps it shrinks.
    """

    latency: Mapping[Kernels, float] = field(default_factory=dict)
    loss: Mapping[str, float] = field(default_factory=dict)
    power: float = POWER
    recovery: float = RECOVERY

    def weight(self, form: str) -> float:
        """What one nat of a form of choices is to count, beside those of others."""
        return self.loss.get(form, _start(form))

    def factor(self, kernels: Kernels) -> float:
        """By what a planned latency is to be multiplied; what is not known is as the others are."""
        format, _ = kernels
        known = [self.latency[one] for one in (kernels, (format, False)) if one in self.latency]
        return known[0] if known else 1.0

    def predicted_latency(self, seen: Observation) -> float:
        return seen.planned_latency * self.factor(seen.kernels)

    def predicted_loss(self, seen: Observation) -> float:
        lost = {f: loss for f, loss in seen.planned_losses.items() if f != QUANTIZE}
        rounded = self.weight(QUANTIZE) * seen.planned_losses.get(QUANTIZE, 0.0)
        if not seen.steps:
            return rounded + sum(lost.values())
        together = sum(self.weight(f) ** (1 / self.power) * loss for f, loss in lost.items())
        left: float = together**self.power * (seen.steps / SHORTEST) ** -self.recovery
        return rounded + left


def learn(seen: Sequence[Observation]) -> Beliefs:
    """What explains the measurements best, in the logarithm, near where it started."""
    return replace(_loss_beliefs(seen), latency=_latency_factors(seen))


def expected(seen: Sequence[Observation]) -> Iterator[tuple[float, float]]:
    """The latency (seconds) and loss (nats) that all others let expect of each.

    Others are of another network, or of the same one trained for longer or shorter: formats of one
    network would tell of each other.
    """
    for one in seen:
        others = [other for other in seen if _network(other) != _network(one)]
        beliefs = learn(others)
        yield beliefs.predicted_latency(one), beliefs.predicted_loss(one)


def _network(seen: Observation) -> tuple[object, ...]:
    losses = {f: loss for f, loss in seen.planned_losses.items() if f != QUANTIZE}
    return seen.steps, sorted(losses.items())


def believed(menu: Menu, format: str, beliefs: Beliefs) -> Menu:
    """The menu at the costs that measurements have shown."""
    floating, integer = (beliefs.factor((format, has_integers)) for has_integers in (False, True))

    def seconds(shape: LayerShape, precision: Precision) -> Seconds:
        return Seconds(
            menu.seconds(shape, precision) * (integer if precision.is_integer else floating)
        )

    return replace(
        menu,
        seconds=seconds,
        glue={path: Seconds(taken * floating) for path, taken in menu.glue.items()},
        fixed=Seconds(menu.fixed * floating),
        conversion=Seconds(menu.conversion * integer),
    )


def _latency_factors(seen: Sequence[Observation]) -> dict[Kernels, float]:
    every = dict.fromkeys(one.kernels for one in seen)
    return {kernels: float(np.exp(_mean_log_ratio(seen, kernels))) for kernels in every}


def _mean_log_ratio(seen: Sequence[Observation], kernels: Kernels) -> float:
    ratios = [
        np.log(one.measured_latency / one.planned_latency) for one in seen if one.kernels == kernels
    ]
    return float(np.sum(ratios) / (len(ratios) + PRIOR_WEIGHT))


def _loss_beliefs(seen: Sequence[Observation]) -> Beliefs:
    forms = sorted({form for one in seen for form in one.planned_losses})
    if not forms:
        return Beliefs()
    measured = np.log(np.array([one.measured_loss for one in seen]).clip(FLOOR))
    start = np.array([*(np.log(_start(form)) for form in forms), POWER, RECOVERY])

    def believed(values: np.ndarray) -> Beliefs:
        factors = dict(zip(forms, np.exp(values[:-2]).tolist(), strict=True))
        return Beliefs({}, factors, float(np.clip(values[-2], *POWERS)), float(values[-1]))

    def residuals(values: np.ndarray) -> np.ndarray:
        beliefs = believed(values)
        expected = np.log(np.array([beliefs.predicted_loss(one) for one in seen]).clip(FLOOR))
        return np.concatenate([expected - measured, PRIOR_WEIGHT * (values - start)])

    # A candidate that broke down must not decide what is believed of all others.
    return believed(least_squares(residuals, start, loss="soft_l1").x)


def _start(form: str) -> float:
    return 1.0 if form == QUANTIZE else RECOVERED
