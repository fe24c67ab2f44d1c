"""Percentiles follow from raw samples, with bounds that hold and claims that are earned."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgebuild.vocabulary.measurement import Evidence, Figure, Measurement, Outcome
from edgebuild.vocabulary.units import Bytes, Seconds

LATENCIES = st.lists(st.floats(min_value=1e-6, max_value=10.0), min_size=1, max_size=200)
# The first percentile of a process waits for scipy.
PATIENT = settings(deadline=None)
SHARES = st.sampled_from([0.5, 0.9, 0.95, 0.99])


def measured(latencies: Sequence[float]) -> Measurement:
    return Measurement(
        latencies=tuple(map(Seconds, latencies)),
        load=Seconds(0.1),
        peak_memory=Bytes(1000),
        peak_anonymous=Bytes(500),
        baseline_memory=Bytes(10_000),
        cpu_share=1.0,
        threads=1,
        runtime="a runtime 1.0",
        machine="a machine",
        taken_at="2026-01-01T00:00:00+00:00",
    )


# ---- percentiles


@pytest.mark.parametrize(("share", "expected"), [(0.5, 51), (0.9, 91), (0.99, 100)])
def test_percentiles_of_a_known_sample_err_to_the_slow_side(share: float, expected: float) -> None:
    assert measured(range(1, 101)).percentile(share).value == expected


def test_one_latency_is_every_percentile() -> None:
    found = measured([0.3]).percentile(0.99)
    assert (found.low, found.value, found.high, found.early_stopping) == (0.3, 0.3, None, None)


@PATIENT
@given(latencies=LATENCIES, share=SHARES)
def test_a_percentile_and_its_bounds_are_latencies_of_the_run(
    latencies: list[float], share: float
) -> None:
    found = measured(latencies).percentile(share)
    high = found.value if found.high is None else found.high
    assert {found.low, found.value, high} <= set(latencies)
    assert found.low <= found.value <= high


@PATIENT
@given(latencies=LATENCIES, share=SHARES, data=st.data())
def test_the_order_of_the_run_changes_no_percentile(
    latencies: list[float], share: float, data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(latencies))
    assert measured(shuffled).percentile(share) == measured(latencies).percentile(share)


@PATIENT
@given(latencies=LATENCIES)
def test_higher_percentiles_are_no_faster(latencies: list[float]) -> None:
    found = [measured(latencies).percentile(share).value for share in (0.5, 0.9, 0.99)]
    assert found == sorted(found)


@pytest.mark.parametrize(("share", "count"), [(0.5, 64), (0.9, 300), (0.99, 2000)])
def test_the_interval_encloses_the_true_percentile_99_times_of_100(
    share: float, count: int
) -> None:
    truth = -math.log(1 - share)
    draws = np.random.default_rng(0).exponential(size=(1000, count))
    found = [measured(row).percentile(share) for row in draws]
    enclosed = np.mean([each.low <= truth <= each.high for each in found])
    assert enclosed >= 0.982


# ---- early stopping


@pytest.mark.parametrize(("share", "least"), [(0.9, 64), (0.95, 130), (0.97, 219), (0.99, 662)])
def test_a_percentile_is_claimed_from_mlperfs_least_number_of_queries_on(
    share: float, least: int
) -> None:
    assert measured(range(least - 1)).percentile(share).early_stopping is None
    assert measured(range(least)).percentile(share).early_stopping == least - 1


def test_a_longer_run_claims_a_bound_nearer_to_the_percentile() -> None:
    bounds = [measured(np.arange(n) / n).percentile(0.9).early_stopping for n in (64, 640, 6400)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] == pytest.approx(0.9, abs=0.01)


def test_the_claimed_bound_lies_above_the_true_percentile_99_times_of_100() -> None:
    draws = np.random.default_rng(1).uniform(size=(1000, 200))
    bounds = [measured(row).percentile(0.9).early_stopping for row in draws]
    assert np.mean([bound is not None and bound >= 0.9 for bound in bounds]) >= 0.982


# ---- conclusive


def test_halves_that_agree_are_conclusive() -> None:
    assert measured([1.0, 1.1, 1.0] * 20).is_conclusive


@pytest.mark.parametrize(("first", "second"), [(1.0, 1.2), (1.2, 1.0)])
def test_halves_that_disagree_are_not(first: float, second: float) -> None:
    assert not measured([first] * 50 + [second] * 50).is_conclusive


def test_a_few_outliers_do_not_make_a_run_inconclusive() -> None:
    assert measured([1.0] * 50 + [9.0] * 5 + [1.0] * 45).is_conclusive


@pytest.mark.parametrize("count", [0, 1])
def test_a_run_too_short_to_halve_is_inconclusive(count: int) -> None:
    assert not measured([1.0] * count).is_conclusive


# ---- outcomes


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(2.0, Outcome.PASS), (0.5, Outcome.FAIL), (1.0099, Outcome.INCONCLUSIVE)],
)
def test_a_limit_inside_the_bounds_is_neither_kept_nor_broken(
    limit: float, expected: Outcome
) -> None:
    assert measured(np.linspace(1.0, 1.01, 1000)).outcome(Seconds(limit)) is expected


def test_too_few_runs_pass_nothing() -> None:
    assert measured([1.0]).outcome(Seconds(2.0)) is Outcome.INCONCLUSIVE
    assert measured([1.0] * 50).outcome(Seconds(2.0)) is Outcome.INCONCLUSIVE
    assert measured([1.0] * 50).outcome(Seconds(0.5)) is Outcome.FAIL
    assert measured([1.0] * 50 + [1.2] * 50).outcome(Seconds(2.0)) is Outcome.INCONCLUSIVE


@pytest.mark.parametrize("count", [500, 4000])
@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        # The halves are 1.2 apart: below 1 / 1.2 and above 1.2 × 1.2 both say the same.
        (0.5, Outcome.FAIL),
        (0.82, Outcome.FAIL),
        (0.9, Outcome.INCONCLUSIVE),
        (1.1, Outcome.INCONCLUSIVE),
        (1.3, Outcome.INCONCLUSIVE),
        (1.45, Outcome.PASS),
        (9.0, Outcome.PASS),
    ],
)
def test_halves_that_disagree_decide_only_what_both_say_with_a_margin(
    limit: float, expected: Outcome, count: int
) -> None:
    for first, second in ((1.0, 1.2), (1.2, 1.0)):
        run = measured([first] * count + [second] * count)
        assert run.outcome(Seconds(limit)) is expected


def test_a_slow_tail_in_one_half_alone_fails_no_limit() -> None:
    fast, slow = [1.0] * 4000, [1.2] * 3600 + [9.0] * 400
    assert measured(fast + slow).outcome(Seconds(3.0)) is Outcome.INCONCLUSIVE
    assert measured(fast + slow).outcome(Seconds(11.0)) is Outcome.PASS


# ---- figures


def test_a_figure_without_known_error_is_its_own_interval() -> None:
    assert Figure(3.0, Evidence.MEASURED, "host").interval == (3.0, 3.0)
    assert Figure(3.0, Evidence.PREDICTED, "a target", low=1.0).interval == (1.0, 3.0)
    assert Figure(3.0, Evidence.PREDICTED, "a target", 0.0, 9.0).interval == (0.0, 9.0)


@pytest.mark.parametrize("count", [63, 64, 100, 200, 661, 662, 2000])
def test_as_many_queries_are_discarded_as_loadgen_discards(count: int, tmp_path: Path) -> None:
    """MLPerf's own program is asked: what it would discard depends on their count alone."""
    pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed")
    program = Path(__file__).with_name("loadgen_run.py")
    words = [sys.executable, str(program), str(tmp_path), str(count)]
    subprocess.run(words, check=True, capture_output=True)
    said = (tmp_path / "mlperf_log_summary.txt").read_text()
    for share in (0.9, 0.99):
        bound = measured(range(count)).percentile(share).early_stopping
        claim = f"Early stopping {share:.1%}".replace("%", "th percentile estimate")
        assert (bound is not None) == (claim in said)
    ninety = measured(range(count)).percentile(0.9).early_stopping
    if ninety is not None:
        discarded = re.search(r"Would discard (\d+) highest", said)
        assert discarded is not None
        assert count - 1 - ninety == int(discarded[1])
