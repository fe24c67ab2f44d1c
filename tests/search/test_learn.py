"""What was measured corrects what the planner believes, and chance does not sway it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebuild.search.learn import RECOVERED, Beliefs, Observation, learn


def seen(
    losses: dict[str, float],
    loss: float,
    planned: float = 1.0,
    taken: float = 1.0,
    steps: int = 0,
) -> Observation:
    return Observation("onnx", planned, taken, losses, loss, steps)


def test_before_anything_is_measured_recovery_is_expected_to_help() -> None:
    beliefs = learn([])
    assert beliefs.weight("quantize") == 1.0
    assert beliefs.weight("prune") == RECOVERED
    assert beliefs == Beliefs()


@given(factor=st.floats(0.2, 5.0))
def test_a_format_that_is_always_slower_than_planned_is_believed_to_be(factor: float) -> None:
    observations = [seen({}, 0.1, planned=t, taken=t * factor) for t in range(1, 40)]
    assert learn(observations).latency["onnx"] == pytest.approx(factor, rel=0.1)


@given(prune=st.floats(0.01, 1.0), quantize=st.floats(0.2, 3.0))
def test_the_factors_of_families_are_found_again(prune: float, quantize: float) -> None:
    observations = [
        seen({"prune": p, "quantize": q}, prune * p + quantize * q)
        for p, q in [(0.5, 0.0), (1.0, 0.01), (2.0, 0.0), (0.0, 0.02), (0.0, 0.05), (0.0, 0.1)] * 4
    ]
    beliefs = learn(observations)
    assert beliefs.weight("prune") == pytest.approx(prune, rel=0.4)
    assert beliefs.weight("quantize") == pytest.approx(quantize, rel=0.4)


def test_how_fast_training_recovers_is_found_again() -> None:
    observations = [
        seen({"prune": p}, 0.1 * p * (steps / 50) ** -1.5, steps=steps)
        for p in (0.5, 1.0, 2.0)
        for steps in (50, 100, 200, 400, 800)
    ]
    assert learn(observations).recovery == pytest.approx(1.5, rel=0.15)


def test_training_recovers_nothing_of_quantization() -> None:
    beliefs = Beliefs(recovery=1.0)
    assert beliefs.predicted_loss(seen({"quantize": 0.2}, 0.0, steps=800)) == 0.2


def test_one_candidate_that_broke_down_does_not_decide() -> None:
    sane = [seen({"prune": p}, 0.1 * p) for p in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)]
    with_outlier = learn([*sane, seen({"prune": 1.0}, 50.0)])
    assert with_outlier.weight("prune") < 0.4


def test_a_prediction_uses_what_was_learned() -> None:
    beliefs = Beliefs({"onnx": 2.0}, {"prune": 0.5})
    one = seen({"prune": 0.2, "quantize": 0.1}, 0.0, planned=3.0)
    assert beliefs.predicted_latency(one) == 6.0
    assert beliefs.predicted_loss(one) == pytest.approx(0.2)
