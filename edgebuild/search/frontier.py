"""What is worth choosing from: the candidates that no other beats in both score and latency."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from edgebuild.vocabulary.measurement import Evidence
from edgebuild.vocabulary.trial import Trial
from edgebuild.vocabulary.units import Seconds
from edgebuild.vocabulary.verdict import Status

# Score and latency as a point: what is lost, and what it costs; less is better of both.
Point = tuple[float, float]
# What loses more score than this is of no interest.
WORST_LOSS = 0.10


def speed(trial: Trial) -> Seconds:
    """The latency that candidates are compared by: the median, where it was measured on the target.

    On another target it is the predicted one.
    """
    judged = trial.figures["latency_p99"]
    if judged.evidence is Evidence.PREDICTED:
        return Seconds(judged.value)
    return Seconds(trial.figures["latency_p50"].value)


def frontier(trials: Iterable[Trial]) -> list[Trial]:
    """The trials that no other beats in both, from the fastest to the best score."""
    found: list[Trial] = []
    made = [trial for trial in trials if not trial.failure]
    for trial in sorted(made, key=lambda trial: (speed(trial), -trial.score)):
        if not found or trial.score > found[-1].score:
            found.append(trial)
    return found


def hypervolume(points: Iterable[Point], reference: Point) -> float:
    """The area between the points and the reference, which is worse than all that count.

    Zitzler and Thiele, "Multiobjective Evolutionary Algorithms" (IEEE TEC 1999), in two
    dimensions.
    """
    area, lowest = 0.0, reference[1]
    for lost, cost in sorted(points):
        if lost < reference[0] and cost < lowest:
            area += (reference[0] - lost) * (lowest - cost)
            lowest = cost
    return area


def halvings(points: Iterable[Point]) -> float:
    """How often the points halve the latency, on average over ten points of score.

    Their hypervolume in score lost and the logarithm of latency, which comes as a share of the
    float network's: on a linear scale, ten and twenty times as fast are almost the same.
    """
    scaled = [(lost, math.log2(share)) for lost, share in points]
    return hypervolume(scaled, (WORST_LOSS, 0.0)) / WORST_LOSS


def volume(trials: Iterable[Trial], better: Trial | None = None, share: float = 1.0) -> float:
    """How often the trials' frontier halves the float network's latency: its hypervolume.

    With a trial that is to be better: if it had lost but this share of the score that it has.
    """
    made = [trial for trial in trials if not trial.failure]
    floats = [speed(trial) for trial in made if trial.recipe.is_float]
    if not floats:
        return 0.0
    lost = {id(trial): max(trial.figures["accuracy_drop"].value, 0.0) for trial in made}
    if better is not None:
        lost[id(better)] *= share
    return halvings((lost[id(trial)], speed(trial) / min(floats)) for trial in made)


def cheapest(trials: Sequence[Trial]) -> Trial | None:
    """The fastest of those that breach no line of the budget."""
    kept = [t for t in trials if not t.failure and t.verdict.status is not Status.BREACHED]
    return min(kept, key=speed, default=None)


def knee(trials: Sequence[Trial]) -> Trial | None:
    """The point of the frontier that is farthest from the line between its ends.

    Both axes scaled to the frontier's own extent (Das, "On characterizing the knee of the Pareto
    curve", 1999); of fewer than three points the fastest.
    """
    points = frontier(trials)
    if len(points) < 3:
        return points[0] if points else None
    first, last = points[0], points[-1]
    width, height = speed(last) - speed(first), last.score - first.score

    def distance(trial: Trial) -> float:
        return (trial.score - first.score) / height - (speed(trial) - speed(first)) / width

    return max(points, key=distance)
