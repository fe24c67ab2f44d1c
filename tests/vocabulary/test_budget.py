"""A budget reads quantities in words, and gives way line by line."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebuild.vocabulary.errors import InvalidQuantity
from edgebuild.vocabulary.target import BUDGET_PARSERS, Budget

LINES = [line.name for line in fields(Budget)]
WISHES = st.none() | st.floats(min_value=0, max_value=1e9)
BUDGETS = st.builds(Budget, **dict.fromkeys(LINES, WISHES))


def test_every_line_reads_its_own_kind_of_quantity() -> None:
    texts = {
        "latency_p99": "22 ms",
        "memory": "64 MB",
        "storage": "5MB",
        "download": "2 MB",
        "power": "3 W",
        "rate": "30 /s",
        "accuracy_drop": "1%",
    }
    expected = Budget(0.022, 64_000_000, 5_000_000, 2_000_000, 3.0, 30.0, 0.01)  # type: ignore[arg-type]
    assert asdict(Budget.parse(**texts)) == pytest.approx(asdict(expected))
    assert set(texts) == set(LINES) == set(BUDGET_PARSERS)


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("wish", [5, 0.5, None])
def test_what_is_no_text_is_refused_with_an_example_that_is_read(line: str, wish: Any) -> None:
    with pytest.raises(InvalidQuantity, match=f"budget line {line}: {wish} has no unit") as told:
        Budget.parse(**{line: wish})
    example = str(told.value).split('"')[1]
    assert getattr(Budget.parse(**{line: example}), line) > 0


def test_nothing_stated_is_nothing_wished() -> None:
    assert Budget.parse() == Budget()
    assert set(asdict(Budget()).values()) == {None}


@pytest.mark.parametrize("line", LINES)
def test_a_number_without_a_unit_is_refused_with_the_lines_name(line: str) -> None:
    with pytest.raises(InvalidQuantity, match=f"budget line {line}: '22' has no unit"):
        Budget.parse(**{line: "22"})


def test_the_unit_of_another_line_is_refused() -> None:
    with pytest.raises(InvalidQuantity, match="budget line latency_p99: .*unknown unit 'MB'"):
        Budget.parse(latency_p99="22 MB")


def test_an_unknown_line_is_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidQuantity, match="unknown budget line 'latency'.*'latency_p99'"):
        Budget.parse(latency="22 ms")


@given(budget=BUDGETS, other=BUDGETS)
def test_a_stated_line_replaces_and_an_unstated_one_does_not(budget: Budget, other: Budget) -> None:
    merged = budget.overridden_by(other)
    for line in LINES:
        stated = getattr(other, line)
        assert getattr(merged, line) == (getattr(budget, line) if stated is None else stated)


@given(budget=BUDGETS)
def test_overriding_with_nothing_or_itself_changes_nothing(budget: Budget) -> None:
    assert budget.overridden_by(Budget()) == budget
    assert budget.overridden_by(budget) == budget
    assert Budget().overridden_by(budget) == budget


def test_a_wish_of_zero_is_stated() -> None:
    loose, strict = Budget.parse(accuracy_drop="1 %"), Budget.parse(accuracy_drop="0 %")
    assert loose.overridden_by(strict).accuracy_drop == 0
