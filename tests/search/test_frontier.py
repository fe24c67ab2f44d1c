"""The frontier holds what nothing beats, and its volume grows with whatever is worth having."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_search import tried

from edgebuild.search.frontier import cheapest, frontier, halvings, hypervolume, knee, speed
from edgebuild.vocabulary.measurement import Evidence
from edgebuild.vocabulary.recipe import Recipe
from edgebuild.vocabulary.trial import Trial

REFERENCE = (1.0, 1.0)
SHARES = st.floats(0.0, 1.0)
POINTS = st.lists(st.tuples(SHARES, SHARES), max_size=8)


TRIALS = st.lists(st.builds(tried, SHARES, st.floats(0.01, 1.0)), min_size=1, max_size=8)


def test_candidates_are_compared_by_the_median_or_by_what_is_predicted_elsewhere() -> None:
    assert speed(tried(0.5, 0.1)) == 0.1
    assert speed(tried(0.5, 0.1, Evidence.PREDICTED)) == 0.2


@given(TRIALS)
def test_nothing_beats_what_is_on_the_frontier_and_something_all_others(
    trials: list[Trial],
) -> None:
    found = frontier(trials)
    for trial in trials:
        beaten_by = [
            other
            for other in trials
            if other.score >= trial.score
            and speed(other) <= speed(trial)
            and (other.score, speed(other)) != (trial.score, speed(trial))
        ]
        same = [(one.score, speed(one)) for one in found]
        assert ((trial.score, speed(trial)) in same) == (not beaten_by)


def test_what_failed_is_on_no_frontier() -> None:
    failed = Trial(Recipe("broken", "onnx", ()), failure="ParityLost: all lost")
    assert frontier([failed]) == []
    assert cheapest([failed]) is None
    assert knee([failed]) is None


@given(POINTS, st.tuples(SHARES, SHARES))
def test_another_point_never_makes_the_volume_smaller(
    points: list[tuple[float, float]], another: tuple[float, float]
) -> None:
    before, after = hypervolume(points, REFERENCE), hypervolume([*points, another], REFERENCE)
    assert before - 1e-12 <= after <= 1.0 + 1e-12


@given(POINTS)
def test_the_volume_is_the_share_of_what_some_point_beats(
    points: list[tuple[float, float]],
) -> None:
    """Counted on a grid, to its precision."""
    steps = 40
    centers = [(x + 0.5) / steps for x in range(steps)]
    beaten = sum(
        any(lost <= x and cost <= y for lost, cost in points) for x in centers for y in centers
    )
    assert abs(hypervolume(points, REFERENCE) - beaten / steps**2) < 2.5 / steps


def test_points_beyond_the_reference_count_nothing() -> None:
    assert hypervolume([(1.5, 0.1), (0.1, 1.5)], REFERENCE) == 0.0


def test_the_cheapest_keeps_the_budget() -> None:
    fast, slow = tried(0.5, 0.1, breached=True), tried(0.9, 0.5)
    assert cheapest([fast, slow]) is slow


def test_the_knee_is_where_more_score_begins_to_cost_much() -> None:
    trials = [tried(0.2, 0.1), tried(0.8, 0.2), tried(0.9, 0.9)]
    assert knee(trials) is trials[1]


def test_twice_as_fast_is_one_halving_however_fast_it_was() -> None:
    assert halvings([(0.0, 0.5)]) == pytest.approx(1.0)
    assert halvings([(0.0, 0.25)]) == pytest.approx(2.0)
    assert halvings([(0.05, 0.25)]) == pytest.approx(1.0)


def test_slower_than_the_float_network_counts_for_nothing() -> None:
    assert halvings([(0.0, 2.0)]) == 0.0
