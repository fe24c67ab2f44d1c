"""Judges figures against a budget, line by line, and picks the best candidate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields

from edgebuild.search.frontier import cheapest, knee
from edgebuild.vocabulary.measurement import Evidence, Figure
from edgebuild.vocabulary.target import Budget, Preference, Target
from edgebuild.vocabulary.trial import Trial
from edgebuild.vocabulary.verdict import BudgetLine, Status, Verdict

# The bound of an accuracy drop is about so many standard errors above it.
ERRORS = 1.8


def judge(figures: Mapping[str, Figure], budget: Budget, target: Target) -> Verdict:
    """Every stated budget line against its figure."""
    return Verdict(tuple(_lines(figures, budget, target)))


def _lines(figures: Mapping[str, Figure], budget: Budget, target: Target) -> Iterator[BudgetLine]:
    for wish in fields(Budget):
        limit = getattr(budget, wish.name)
        # A rate is what the power line is stated at, no limit of its own.
        if limit is None or wish.name == "rate":
            continue
        figure = figures.get(wish.name)
        if figure is None:
            reason = f"{target.name} has no facts to model it from, and no meter was read"
            yield BudgetLine(wish.name, limit, None, Status.UNKNOWN, reason)
        else:
            status, reason = _status(wish.name, limit, figure)
            yield BudgetLine(wish.name, limit, figure, status, reason)


def _status(line: str, limit: float, figure: Figure) -> tuple[Status, str]:
    low, high = figure.interval
    if low > limit:
        return Status.BREACHED, ""
    if not figure.is_bounded:
        return Status.UNKNOWN, figure.note
    if line == "accuracy_drop" and high > limit:
        return Status.UNKNOWN, "on other samples more may be lost: give more of them to tell"
    if figure.evidence is Evidence.MEASURED:
        if high <= limit:
            return Status.MET, ""
        inside = "the limit lies within the measurement's interval"
        return Status.UNKNOWN, f"{inside}; {figure.note}" if figure.note else inside
    if figure.evidence is Evidence.MODELLED_BOUND or (
        line == "power" and figure.evidence is not Evidence.CALIBRATED_MODEL
    ):
        return Status.UNKNOWN, "a modelled bound proves nothing below the limit: read a meter"
    if high <= limit:
        return Status.PREDICTED, ""
    return Status.UNKNOWN, "the limit lies within the prediction's error: measure on the device"


def choose(trials: Sequence[Trial], prefer: Preference = Preference.SCORE) -> Trial | None:
    """The preferred one of those that breach no line; if all do, the nearest; None if all failed.

    What leaves fewer lines unknown comes before what is preferred. A score above the network's own
    counts as equal to it. Equal scores go to the lower latency on the target, then to the smaller
    file, then to the smaller memory, then to the higher score.
    """
    candidates = [trial for trial in trials if not trial.failure]
    kept = [trial for trial in candidates if trial.verdict.status is not Status.BREACHED]
    fewest = min(map(_doubts, kept), default=0)
    surest = [trial for trial in kept if _doubts(trial) == fewest]
    if kept and prefer is Preference.LATENCY:
        return cheapest(surest)
    if kept and prefer is Preference.KNEE:
        return knee(surest)
    return min(surest or candidates, key=_rank, default=None)


def _doubts(trial: Trial) -> int:
    return sum(_is_doubtful(line) for line in trial.verdict.lines)


def _is_doubtful(line: BudgetLine) -> bool:
    """Whether a line is unknown; an accuracy drop may be so by one standard error.

    Few samples prove nothing at 95 %, and would leave nothing but the network itself to choose. The
    one-standard-error rule is of Breiman et al., "Classification and Regression Trees", 1984.
    """
    if line.status is not Status.UNKNOWN:
        return False
    if line.name != "accuracy_drop" or line.figure is None:
        return True
    low, high = line.figure.interval
    return low + (high - low) / ERRORS > line.limit


def _rank(trial: Trial) -> tuple[float, ...]:
    figures = trial.figures
    # Above the network's own score is luck, and no reason to prefer a candidate.
    drop = max(figures["accuracy_drop"].value, 0.0)
    costs = [figures[name].value for name in ("latency_p99", "storage", "memory")]
    # No line breached is an overrun of 0, so those stand first and by their score alone.
    return (trial.verdict.overrun, drop, *costs, -trial.score)
