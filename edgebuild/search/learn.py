"""Corrects what the planner believes by what was measured of the candidates that it planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import least_squares

from edgebuild.catalog import QUANTIZE

# Losses of families that are followed by recovery: what training leaves of them is learned, and
# this is where learning starts.
RECOVERED = 0.1
# The power of the steps that training takes from those losses, from so many steps on.
RECOVERY, SHORTEST = 0.5, 50
# How many candidates' worth of certainty the start has.
PRIOR_WEIGHT = 1.0
# Losses below this, in nats, are noise.
FLOOR = 1e-5


@dataclass(frozen=True)
class Observation:
    """One candidate, as planned and as measured: seconds, and nats (planned by family).

    `steps` is how long it was trained to recover.
    """

    format: str
    planned_latency: float
    measured_latency: float
    planned_losses: Mapping[str, float]
    measured_loss: float
    steps: int = 0


@dataclass(frozen=True)
class Beliefs:
    """By what the planner's latencies (by format) and losses (by family) are to be multiplied.

    Families that training recovers lose as its steps to the power of minus `recovery`.
    """

    latency: Mapping[str, float] = field(default_factory=dict)
    loss: Mapping[str, float] = field(default_factory=dict)
    recovery: float = RECOVERY

    def weight(self, family: str) -> float:
        """What a family's planned losses are to be multiplied by."""
        return self.loss.get(family, _start(family))

    def predicted_latency(self, seen: Observation) -> float:
        return seen.planned_latency * self.latency.get(seen.format, 1.0)

    def predicted_loss(self, seen: Observation) -> float:
        return sum(loss * self.weight(family) for family, loss in seen.planned_losses.items())


def learn(seen: Sequence[Observation]) -> Beliefs:
    """The factors that explain the measurements best, in the logarithm, near where they started."""
    factors, recovery = _loss_factors(seen)
    return Beliefs(_latency_factors(seen), factors, recovery)


def _latency_factors(seen: Sequence[Observation]) -> dict[str, float]:
    formats = dict.fromkeys(one.format for one in seen)
    return {name: float(np.exp(_mean_log_ratio(seen, name))) for name in formats}


def _mean_log_ratio(seen: Sequence[Observation], name: str) -> float:
    ratios = [
        np.log(one.measured_latency / one.planned_latency) for one in seen if one.format == name
    ]
    return float(np.sum(ratios) / (len(ratios) + PRIOR_WEIGHT))


def _loss_factors(seen: Sequence[Observation]) -> tuple[dict[str, float], float]:
    families = sorted({family for one in seen for family in one.planned_losses})
    if not families:
        return {}, RECOVERY
    table = np.array([[one.planned_losses.get(family, 0.0) for family in families] for one in seen])
    measured = np.log(np.array([one.measured_loss for one in seen]).clip(FLOOR))
    start = np.array([*np.log([_start(family) for family in families]), RECOVERY])

    def residuals(beliefs: np.ndarray) -> np.ndarray:
        left = np.array([[_left(f, one.steps, beliefs[-1]) for f in families] for one in seen])
        planned = np.log(((table * left) @ np.exp(beliefs[:-1])).clip(FLOOR))
        return np.concatenate([planned - measured, PRIOR_WEIGHT * (beliefs - start)])

    # A candidate that broke down must not decide what is believed of all others.
    found = least_squares(residuals, start, loss="soft_l1").x
    return dict(zip(families, np.exp(found[:-1]).tolist(), strict=True)), float(found[-1])


def _left(family: str, steps: int, recovery: float) -> float:
    """What training leaves of a family's loss, relative to the shortest one that is tried."""
    if family == QUANTIZE or steps <= SHORTEST:
        return 1.0
    return float((steps / SHORTEST) ** -recovery)


def _start(family: str) -> float:
    return 1.0 if family == QUANTIZE else RECOVERED
