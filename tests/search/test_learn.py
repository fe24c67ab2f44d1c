"""What was measured corrects what the planner believes, and chance does not sway it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_search import linear, menu

from edgebuild.search.learn import (
    RECOVERED,
    SHORTEST,
    Beliefs,
    Observation,
    believed,
    expected,
    learn,
)
from edgebuild.search.plan import fastest
from edgebuild.vocabulary.precision import Precision


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
    assert learn(observations).factor(("onnx", False)) == pytest.approx(factor, rel=0.1)


@given(prune=st.floats(0.01, 1.0), factorize=st.floats(0.01, 1.0), quantize=st.floats(0.2, 3.0))
def test_the_factors_of_families_are_found_again(
    prune: float, factorize: float, quantize: float
) -> None:
    truth = Beliefs(loss={"prune": prune, "factorize": factorize, "quantize": quantize}, power=0.7)
    lost = [(0.5, 0.0, 0.0), (2.0, 0.0, 0.01), (0.0, 1.0, 0.0), (0.0, 0.2, 0.02), (0.0, 0.0, 0.1)]
    planned = [seen({"prune": p, "factorize": f, "quantize": q}, 0.0) for p, f, q in lost * 5]
    trained = [replace(one, steps=SHORTEST) for one in planned]
    beliefs = learn([replace(one, measured_loss=truth.predicted_loss(one)) for one in trained])
    for family, factor in truth.loss.items():
        assert beliefs.weight(family) == pytest.approx(factor, rel=0.5)


@given(power=st.floats(0.2, 0.9))
def test_how_much_training_forgets_is_found_again(power: float) -> None:
    observations = [
        seen({"prune": loss}, 0.1 * loss**power, steps=SHORTEST)
        for loss in (0.01, 0.1, 1.0, 10.0) * 5
    ]
    assert learn(observations).power == pytest.approx(power, abs=0.1)


def test_what_is_not_trained_loses_what_it_is_planned_to() -> None:
    one = seen({"prune": 0.2, "factorize": 0.1, "quantize": 0.05}, 0.0)
    assert Beliefs().predicted_loss(one) == pytest.approx(0.35)


def test_how_fast_training_recovers_is_found_again() -> None:
    observations = [
        seen({"prune": p}, 0.1 * p**0.5 * (steps / 50) ** -1.5, steps=steps)
        for p in (0.5, 1.0, 2.0)
        for steps in (50, 100, 200, 400, 800)
    ]
    assert learn(observations).recovery == pytest.approx(1.5, rel=0.15)


def test_training_recovers_nothing_of_quantization() -> None:
    beliefs = Beliefs(recovery=1.0)
    assert beliefs.predicted_loss(seen({"quantize": 0.2}, 0.0, steps=800)) == 0.2


def test_integer_kernels_may_be_slower_than_planned_where_float_ones_are_not() -> None:
    floats = [seen({}, 0.1, planned=t, taken=t) for t in range(1, 20)]
    integers = [replace(one, measured_latency=2 * one.planned_latency) for one in floats]
    beliefs = learn([*floats, *(replace(one, has_integers=True) for one in integers)])
    assert beliefs.factor(("onnx", True)) == pytest.approx(2.0, rel=0.1)
    assert beliefs.factor(("onnx", False)) == pytest.approx(1.0)
    plain = menu()
    priced, shape = believed(plain, "onnx", beliefs), linear()
    dear = priced.seconds(shape, Precision.INT8_DYNAMIC)
    assert dear == pytest.approx(2 * plain.seconds(shape, Precision.INT8_DYNAMIC), rel=0.1)
    assert priced.seconds(shape, Precision.FP32) == plain.seconds(shape, Precision.FP32)
    # What planned floats and integers alike now plans floats alone.
    assert set(fastest(priced).precisions.values()) == {Precision.FP32}
    assert set(fastest(plain).precisions.values()) == {Precision.INT8_DYNAMIC}


def test_one_candidate_that_broke_down_does_not_decide() -> None:
    sane = [seen({"prune": p}, 0.1 * p, steps=50) for p in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)]
    with_outlier = learn([*sane, seen({"prune": 1.0}, 50.0, steps=50)])
    assert with_outlier.weight("prune") < 0.4


def test_a_prediction_uses_what_was_learned() -> None:
    beliefs = Beliefs({("onnx", False): 2.0}, {"prune": 0.5}, power=0.5, recovery=1.0)
    one = seen({"prune": 4.0, "quantize": 0.1}, 0.0, planned=3.0, steps=100)
    assert beliefs.predicted_latency(one) == 6.0
    assert beliefs.predicted_loss(one) == pytest.approx(0.1 + 0.5 * 4.0**0.5 / 2)


def test_what_is_expected_of_a_candidate_does_not_know_of_it() -> None:
    like = [seen({"prune": p}, 0.1 * p**0.5, taken=2.0, steps=50) for p in (0.5, 1.0, 1.5, 2.0)]
    odd = seen({"prune": 1.2}, 30.0, taken=90.0, steps=50)
    *_, (latency, loss) = expected([*like, odd])
    assert latency < 3.0
    assert loss == pytest.approx(0.1, rel=0.3)


def test_formats_of_one_network_do_not_tell_of_each_other() -> None:
    twins = [replace(seen({"prune": 1.0}, 30.0, steps=50), format=name) for name in ("a", "b")]
    assert [loss for _, loss in expected(twins)] == [pytest.approx(RECOVERED)] * 2
