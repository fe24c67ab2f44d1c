"""A verdict is as good as its worst line, and names the line that binds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebuild.vocabulary.measurement import Evidence, Figure
from edgebuild.vocabulary.verdict import BudgetLine, Status, Verdict

WORST_FIRST = [Status.BREACHED, Status.UNKNOWN, Status.PREDICTED, Status.MET]


def line(name: str, value: float | None, status: Status, limit: float = 1.0) -> BudgetLine:
    figure = None if value is None else Figure(value, Evidence.PREDICTED, "a target")
    return BudgetLine(name, limit, figure, status)


@given(statuses=st.lists(st.sampled_from(Status), min_size=1))
def test_a_verdict_is_its_worst_lines(statuses: list[Status]) -> None:
    lines = tuple(line("latency_p99", 1.0, status) for status in statuses)
    assert Verdict(lines).status is min(statuses, key=WORST_FIRST.index)


def test_a_verdict_without_lines_is_met_and_nothing_binds() -> None:
    empty = Verdict(())
    assert (empty.status, empty.binding, empty.overrun) == (Status.MET, None, 0.0)


def test_the_line_with_the_least_room_binds() -> None:
    roomy = line("memory", 0.2, Status.MET)
    tight = line("latency_p99", 0.9, Status.PREDICTED)
    nowhere = line("power", None, Status.UNKNOWN)
    found = Verdict((roomy, tight, nowhere))
    assert found.binding == tight
    assert found.overrun == 0.0


def test_the_line_that_is_exceeded_the_most_binds() -> None:
    far = line("memory", 3.0, Status.BREACHED)
    near = line("storage", 1.1, Status.BREACHED)
    assert Verdict((near, far)).binding == far
    assert Verdict((near, far)).overrun == pytest.approx(3.0)


def test_a_breached_line_binds_before_an_uncertain_one_of_higher_value() -> None:
    uncertain = line("latency_p99", 5.0, Status.UNKNOWN)
    breached = line("storage", 1.1, Status.BREACHED)
    found = Verdict((uncertain, breached))
    assert found.binding == breached
    assert found.overrun == pytest.approx(1.1)


@pytest.mark.parametrize("value", [0.0, -0.01])
def test_a_limit_of_zero_that_is_kept_is_not_exceeded(value: float) -> None:
    assert line("accuracy_drop", value, Status.MET, limit=0.0).overrun <= 1.0


def test_a_limit_of_zero_is_exceeded_without_bound() -> None:
    assert line("accuracy_drop", 0.01, Status.BREACHED, limit=0.0).overrun == float("inf")
