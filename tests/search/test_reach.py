"""What diverges no further than this may keep its score."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebuild.search.learn import FLOOR
from edgebuild.search.reach import WITHIN_REACH, bearable


def test_while_every_score_is_within_reach_anything_may_be_tried() -> None:
    assert bearable([]) == math.inf
    assert bearable([(0.0, 0.0), (2.0, 0.09)]) == math.inf


def test_it_lies_where_the_scores_cross_the_reach_in_the_logarithms() -> None:
    # Ten times the divergence loses four times the score: half of it loses twice as much.
    assert bearable([(0.01, 0.05), (0.1, 0.2)]) == pytest.approx(0.1 / math.sqrt(10))


def test_one_that_lost_its_score_for_less_does_not_speak_against_those_that_kept_it() -> None:
    assert bearable([(1e-3, 0.5), (0.01, 0.1), (0.1, 0.2)]) == pytest.approx(0.01)


def test_what_nobody_could_tell_from_nothing_is_borne() -> None:
    assert bearable([(0.0, 0.0), (0.0, 0.5)]) == pytest.approx(FLOOR)


SEEN = st.lists(st.tuples(st.floats(0.0, 10.0), st.floats(-0.01, 1.0)), max_size=8)


@given(seen=SEEN)
def test_it_is_no_less_than_what_kept_its_score(seen: list[tuple[float, float]]) -> None:
    kept = [divergence for divergence, drop in seen if drop <= WITHIN_REACH]
    assert bearable(seen) >= max(kept, default=0.0) * (1 - 1e-9)
