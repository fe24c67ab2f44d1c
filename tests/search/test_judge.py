"""A budget line is met only by measurement on the target; the best that breaches nothing wins."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebuild.inputs.target_file import load_target
from edgebuild.search.judge import choose, judge
from edgebuild.vocabulary.measurement import Evidence, Figure
from edgebuild.vocabulary.recipe import Recipe
from edgebuild.vocabulary.target import Budget, Preference
from edgebuild.vocabulary.trial import Trial
from edgebuild.vocabulary.verdict import BudgetLine, Status

TARGET = load_target("robot-raspberry-pi-5")
LINES = ["latency_p99", "memory", "storage", "accuracy_drop"]
# What a meter's readings become.
BY_METER = (Evidence.MEASURED, Evidence.CALIBRATED_MODEL)
VALUES = st.floats(min_value=0.01, max_value=100)
INTERVALS = st.lists(VALUES, min_size=3, max_size=3).map(sorted)


def judged(line: str, limit: float, figure: Figure | None) -> BudgetLine:
    budget = replace(Budget(), **{line: limit})
    (found,) = judge({} if figure is None else {line: figure}, budget, TARGET).lines
    return found


def figure(evidence: Evidence, low: float, value: float, high: float) -> Figure:
    return Figure(value, evidence, "somewhere", low, high)


# ---- one line


@pytest.mark.parametrize("line", LINES)
def test_only_what_is_measured_is_met(line: str) -> None:
    for evidence in set(Evidence) - {Evidence.MODELLED_BOUND}:
        found = judged(line, 10.0, figure(evidence, 7.0, 8.0, 9.0))
        expected = Status.MET if evidence is Evidence.MEASURED else Status.PREDICTED
        assert found.status is expected


@pytest.mark.parametrize("evidence", Evidence)
@pytest.mark.parametrize("line", [*LINES, "power"])
def test_a_whole_interval_above_the_limit_breaches_it(line: str, evidence: Evidence) -> None:
    assert judged(line, 6.0, figure(evidence, 7.0, 8.0, 9.0)).status is Status.BREACHED


@pytest.mark.parametrize("evidence", Evidence)
@pytest.mark.parametrize("line", [*LINES, "power"])
@pytest.mark.parametrize("limit", [7.5, 8.0, 8.5])
def test_a_limit_inside_the_interval_is_unknown_with_a_reason(
    line: str, evidence: Evidence, limit: float
) -> None:
    found = judged(line, limit, figure(evidence, 7.0, 8.0, 9.0))
    assert found.status is Status.UNKNOWN
    assert found.reason


@given(
    interval=INTERVALS,
    limit=VALUES,
    evidence=st.sampled_from([one for one in Evidence if one not in BY_METER]),
)
def test_modelled_power_is_never_better_than_unknown(
    interval: list[float], limit: float, evidence: Evidence
) -> None:
    found = judged("power", limit, figure(evidence, *interval))
    assert found.status is (Status.BREACHED if interval[0] > limit else Status.UNKNOWN)


def test_power_that_a_meter_read_can_be_met() -> None:
    assert judged("power", 3.0, figure(Evidence.MEASURED, 1.0, 2.0, 3.0)).status is Status.MET


def test_power_by_a_calibrated_model_is_predicted_at_best() -> None:
    assert judged("power", 3.0, figure(Evidence.CALIBRATED_MODEL, 1.0, 2.0, 3.0)).status is (
        Status.PREDICTED
    )


@given(interval=INTERVALS, limit=VALUES, line=st.sampled_from([*LINES, "power"]))
def test_a_modelled_bound_breaches_a_limit_or_leaves_it_unknown(
    interval: list[float], limit: float, line: str
) -> None:
    found = judged(line, limit, figure(Evidence.MODELLED_BOUND, *interval))
    assert found.status is (Status.BREACHED if interval[0] > limit else Status.UNKNOWN)
    assert found.figure is not None


@pytest.mark.parametrize("evidence", BY_METER)
def test_a_sensor_that_sees_a_part_can_breach_a_limit_and_never_keep_it(
    evidence: Evidence,
) -> None:
    part = replace(figure(evidence, 1.0, 2.0, 3.0), is_bounded=False, note="the package alone")
    for limit in (1.5, 3.0, 100.0):
        found = judged("power", limit, part)
        assert (found.status, found.reason) == (Status.UNKNOWN, "the package alone")
    assert judged("power", 0.5, part).status is Status.BREACHED


@pytest.mark.parametrize("line", [*LINES, "power"])
def test_a_line_without_a_figure_is_unknown_with_a_reason(line: str) -> None:
    found = judged(line, 1.0, None)
    assert found.status is Status.UNKNOWN
    assert TARGET.name in found.reason


@given(interval=INTERVALS, limit=VALUES, more=VALUES, line=st.sampled_from([*LINES, "power"]))
def test_a_looser_limit_is_judged_no_worse(
    interval: list[float], limit: float, more: float, line: str
) -> None:
    order = [Status.BREACHED, Status.UNKNOWN, Status.PREDICTED]
    estimate = figure(Evidence.PREDICTED, *interval)
    tight, loose = (judged(line, given, estimate).status for given in (limit, limit + more))
    assert order.index(loose) >= order.index(tight)


def test_a_limit_of_zero_is_a_wish_too() -> None:
    assert judged("accuracy_drop", 0.0, Figure(0.01, Evidence.MEASURED, "here")).status is (
        Status.BREACHED
    )
    assert judged("accuracy_drop", 0.0, Figure(-0.01, Evidence.MEASURED, "here")).status is (
        Status.MET
    )


# ---- all lines


def test_only_stated_lines_are_judged_and_the_rate_is_none_of_them() -> None:
    figures = {line: Figure(1.0, Evidence.MEASURED, "here") for line in LINES}
    assert judge(figures, Budget(), TARGET).lines == ()
    budget = Budget.parse(memory="1 MB", rate="2 /s")
    assert [found.name for found in judge(figures, budget, TARGET).lines] == ["memory"]


# ---- the choice


def tried(
    name: str, score: float, overrun: float = 0.5, latency: float = 1.0, storage: float = 1.0
) -> Trial:
    """A trial whose memory is `overrun` times what it may be."""
    memory = Figure(overrun, Evidence.MEASURED, "here")
    figures = {
        "score": Figure(score, Evidence.MEASURED, "here"),
        "latency_p99": Figure(latency, Evidence.PREDICTED, "there"),
        "storage": Figure(storage, Evidence.MEASURED, "the file"),
        "memory": memory,
        "accuracy_drop": Figure(1.0 - score, Evidence.MEASURED, "here"),
    }
    verdict = judge(figures, replace(Budget(), memory=1.0), TARGET)
    return Trial(Recipe(name, "onnx", ()), figures, verdict)


def failed(name: str) -> Trial:
    return Trial(Recipe(name, "onnx", ()), failure="ParityLost: the outputs are lost")


def chosen(*trials: Trial) -> str | None:
    best = choose(trials)
    return best and best.recipe.name


def test_the_best_score_wins_among_those_that_breach_nothing() -> None:
    trials = [tried("good", 0.8), tried("best", 0.9), tried("too-big", 0.99, overrun=1.1)]
    assert chosen(*trials) == "best"


def test_a_score_above_the_networks_own_is_luck_and_no_reason() -> None:
    lucky, fast = tried("lucky", 1.02, latency=2.0), tried("fast", 1.0)
    assert chosen(lucky, fast) == "fast"


def test_room_that_is_left_counts_for_nothing() -> None:
    assert chosen(tried("small", 0.8, overrun=0.1), tried("better", 0.9, overrun=0.9)) == "better"


def test_equal_scores_go_to_the_faster_and_then_to_the_smaller() -> None:
    slow, fast = tried("slow", 0.9, latency=2.0, storage=1.0), tried("fast", 0.9, storage=5.0)
    smaller = tried("smaller", 0.9, storage=4.0)
    assert chosen(slow, fast) == "fast"
    assert chosen(slow, fast, smaller) == "smaller"


def test_if_all_breach_the_nearest_wins_whatever_its_score() -> None:
    far, near = tried("far", 0.99, overrun=3.0), tried("near", 0.5, overrun=1.2)
    assert chosen(far, near) == "near"
    assert chosen(far, near, failed("broken")) == "near"


def test_what_failed_is_never_chosen() -> None:
    assert chosen(failed("broken"), tried("poor", 0.1, overrun=9.0)) == "poor"
    assert chosen(failed("broken"), failed("too")) is None
    assert chosen() is None


@pytest.mark.parametrize("prefer", Preference)
def test_what_is_sure_to_keep_the_budget_goes_before_what_may_not(prefer: Preference) -> None:
    budget = Budget.parse(accuracy_drop="1 %")

    def losing(name: str, most: float, latency: float) -> Trial:
        drop = Figure(0.005, Evidence.MEASURED, "here", 0.005, most)
        trial = tried(name, 0.995, latency=latency)
        figures = {**trial.figures, "accuracy_drop": drop}
        return replace(trial, figures=figures, verdict=judge(figures, budget, TARGET))

    sure, unsure = losing("sure", 0.008, latency=2.0), losing("unsure", 0.03, latency=1.0)
    assert unsure.verdict.status is Status.UNKNOWN
    assert choose([unsure, sure], prefer) == sure
    assert choose([unsure], prefer) == unsure
    # Within one standard error, it is likely enough to be chosen, though not proven.
    likely = losing("likely", 0.013, latency=1.0)
    assert likely.verdict.status is Status.UNKNOWN
    assert choose([likely, sure], prefer) == likely


@given(
    specs=st.lists(
        st.tuples(st.floats(0, 1), st.floats(0.1, 3.0), VALUES, VALUES), min_size=1, max_size=6
    ),
    data=st.data(),
)
def test_the_choice_does_not_depend_on_the_order(
    specs: list[tuple[float, float, float, float]], data: st.DataObject
) -> None:
    trials = [tried("any", *spec) for spec in specs]
    best, other = choose(trials), choose(data.draw(st.permutations(trials)))
    assert best is not None
    assert other is not None
    assert best.figures == other.figures
    if any(trial.verdict.status is not Status.BREACHED for trial in trials):
        assert best.verdict.status is not Status.BREACHED
