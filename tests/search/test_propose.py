"""Proposals lie between the fastest and the whole network, and follow the frontier from there."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from small_search import SHAPE, STUDENT, TRAINING, WIDTHS, attempt, menu, seconds, tried

from edgebuild.search import propose
from edgebuild.search.learn import Beliefs
from edgebuild.search.menu import Limits, Menu, offers_of, settle
from edgebuild.search.plan import appraise, fastest, whole
from edgebuild.search.proposal import Attempt, Proposal
from edgebuild.search.propose import affordable, first_shapes, next_shapes, opening
from edgebuild.search.training import Training
from edgebuild.vocabulary.offer import NETWORK, Choice, Offer
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.trial import Trial


@pytest.fixture
def menus() -> dict[str, Menu]:
    return {"onnx": menu(*WIDTHS), "tflite": menu(*WIDTHS)}


def first(
    menus: dict[str, Menu],
    *opened: Attempt,
    training: Training = TRAINING,
    limits: Limits | None = None,
) -> list[Proposal]:
    return list(first_shapes(opened, menus, [STUDENT], limits or Limits(), training, Beliefs()))


def test_every_network_is_proposed_in_every_format(menus: dict[str, Menu]) -> None:
    shapes = [proposal.reshaped for proposal in first(menus)]
    assert shapes[::2] == shapes[1::2]


def test_the_first_plans_go_from_the_fastest_to_what_loses_less(menus: dict[str, Menu]) -> None:
    planned = [one for one in first(menus)[::2] if "student" not in one.name]
    latencies = [proposal.latency for proposal in planned]
    assert latencies[0] == min(latencies)
    assert latencies[0] >= fastest(menus["onnx"]).latency * 0.99
    offers = [offers_of(menus["onnx"], proposal.reshaped) for proposal in planned]
    appraised = [
        appraise(menus["onnx"], made, one.precisions)
        for made, one in zip(offers, planned, strict=True)
    ]
    losses = [sum(Beliefs().weight(f) * x for f, x in one.losses.items()) for one in appraised]
    assert losses[0] == max(losses)


def test_what_lost_little_at_first_is_followed_by_faster_plans_alone(
    menus: dict[str, Menu],
) -> None:
    slowest = {
        score: max(one.latency for one in first(menus, attempt(score, 1e-5, steps=100))[:-2])
        for score in (0.995, 0.9)
    }
    assert slowest[0.995] < slowest[0.9]


def test_what_lost_too_much_at_first_is_followed_by_slower_plans_alone(
    menus: dict[str, Menu],
) -> None:
    quickest = {
        score: min(one.latency for one in first(menus, attempt(score, 1e-5, steps=100))[:-2])
        for score in (0.97, 0.7)
    }
    assert quickest[0.7] > quickest[0.97]


def test_where_training_saved_nothing_plans_lose_no_more_than_is_borne(
    menus: dict[str, Menu],
) -> None:
    rounded = Attempt(Proposal("rounded", "onnx"), tried(0.96, 1e-4, divergence=0.01))
    lost = {
        score: max(
            sum(appraise(menu, offers_of(menu, one.reshaped), one.precisions).losses.values())
            for one in next_shapes(
                [rounded, attempt(score, 1e-5, steps=100, divergence=0.1)],
                *(menus, [], Limits(), TRAINING, Beliefs()),
            )
            if one.cut != SHAPE
        )
        for score in (0.8, 0.97)
        for menu in [menus["onnx"]]
    }
    assert lost[0.8] < 0.1 < lost[0.97]


def test_what_was_not_even_exported_speaks_against_fast_plans_too(menus: dict[str, Menu]) -> None:
    """A network that lost its score is a failure, but one that tells how far to go."""
    lost = attempt(0.1, 1e-5, steps=100)
    figures = {"accuracy_drop": lost.trial.figures["accuracy_drop"]}
    ruined = replace(lost, trial=Trial(lost.trial.recipe, figures, failure="not exported"))
    broken = replace(lost, trial=Trial(lost.trial.recipe, failure="no operator for aten.odd"))
    quickest = {
        one: min(plan.latency for plan in first(menus, trial)[:-2])
        for one, trial in (("ruined", ruined), ("broken", broken))
    }
    assert quickest["ruined"] > quickest["broken"]


def test_the_first_plans_are_not_so_fast_that_nothing_could_learn(
    menus: dict[str, Menu], monkeypatch: pytest.MonkeyPatch
) -> None:
    quickest = {}
    for deepest in (1.2, 1e6):
        monkeypatch.setattr(propose, "DEEPEST", deepest)
        quickest[deepest] = min(one.latency for one in first(menus)[:-2])
    assert quickest[1.2] > quickest[1e6] * 1.1


def test_networks_are_rounded_where_bytes_want_it_and_time_does_not() -> None:
    """Integers that are no faster than floats."""
    slow = menu(*WIDTHS)
    slow = replace(slow, seconds=lambda shape, _: seconds(shape, Precision.FP32))
    menus = {"onnx": slow, "tflite": slow}
    stored = {}
    for storage in (math.inf, 0.3 * whole(slow).storage):
        found = first(menus, limits=Limits(storage=storage))
        stored[storage] = [
            appraise(slow, offers_of(slow, one.reshaped), one.precisions).storage
            for one in found
            if "student" not in one.name
        ]
        assert max(stored[storage]) <= storage
    assert max(stored[math.inf]) > 0.3 * whole(slow).storage


def test_what_is_changed_is_trained_and_what_is_not_is_not(menus: dict[str, Menu]) -> None:
    for proposal in first(menus):
        methods = [choice.method for _, choice in proposal.reshaped]
        assert methods == [] or methods[-1] == "distill"


@pytest.mark.parametrize("training", [Training(), Training(first=10.0, most=40.0, step=2.0)])
def test_where_nothing_can_be_trained_nothing_is_proposed_that_needs_it(
    menus: dict[str, Menu], training: Training
) -> None:
    found = first(menus, training=training)
    assert found
    for proposal in found:
        assert not {choice.method for _, choice in proposal.reshaped} & {"distill", "student"}


def test_where_nothing_can_be_trained_no_plan_loses_what_is_out_of_reach(
    menus: dict[str, Menu],
) -> None:
    """A divergence of 0.1 has lost a fifth of the score, so that of the widths few are left."""
    seen = [
        Attempt(Proposal("rounded", "onnx"), tried(score, 1e-4, divergence=divergence))
        for divergence, score in ((0.01, 0.95), (0.1, 0.8))
    ]
    lost = {
        training.is_possible: max(
            sum(appraise(menu, offers_of(menu, one.reshaped), one.precisions).losses.values())
            for one in first_shapes(seen, menus, [], Limits(), training, Beliefs())
        )
        for training in (Training(), TRAINING)
        for menu in [menus["onnx"]]
    }
    assert lost[False] < 0.1 < lost[True]


def test_where_nothing_is_trained_precisions_take_the_time_that_is_wished() -> None:
    menus = {"onnx": menu()}
    mixed = [set(one.precisions.values()) for one in first(menus, training=Training())]
    assert {Precision.FP32, Precision.INT8_DYNAMIC} in mixed


def test_a_latency_that_is_wished_is_tried_whatever_is_lost(menus: dict[str, Menu]) -> None:
    seen = Attempt(Proposal("rounded", "onnx"), tried(0.8, 1e-4, divergence=1e-3))
    wish = Limits(latency=1.2 * fastest(menus["onnx"]).latency)
    latencies = {
        limits: min(
            one.latency for one in first_shapes([seen], menus, [], limits, Training(), Beliefs())
        )
        for limits in (Limits(), wish)
    }
    assert latencies[wish] <= wish.latency < latencies[Limits()]


def test_a_student_is_proposed(menus: dict[str, Menu]) -> None:
    assert any((STUDENT.part, STUDENT.choice) in one.reshaped for one in first(menus))


def following(menus: dict[str, Menu], *attempts: Attempt) -> list[Proposal]:
    return list(next_shapes(attempts, menus, [], Limits(), TRAINING, Beliefs()))


def opened(menus: dict[str, Menu], *attempts: Attempt) -> list[Proposal]:
    return list(opening(attempts, menus, Limits(), TRAINING, Beliefs()))


def test_the_opening_is_one_network_in_every_format(menus: dict[str, Menu]) -> None:
    proposals = opened(menus)
    assert [proposal.format for proposal in proposals] == ["onnx", "tflite"]
    assert len({proposal.reshaped for proposal in proposals}) == 1


def test_the_opening_is_faster_than_a_precision_that_loses_little(menus: dict[str, Menu]) -> None:
    usual = opened(menus)[0].latency
    quick = Proposal("int8-static", "onnx")
    good, bad = (Attempt(quick, tried(score, usual)) for score in (0.999, 0.9))
    assert opened(menus, good)[0].latency < 0.9 * usual
    assert opened(menus, bad)[0].latency == usual


def test_beyond_a_frontier_that_loses_little_something_bolder_is_planned(
    menus: dict[str, Menu],
) -> None:
    fast = 0.7 * whole(menus["onnx"]).latency
    good = following(menus, attempt(0.97, fast))
    assert any(proposal.latency == pytest.approx(fast / 1.5, rel=0.2) for proposal in good)
    assert not following(menus, attempt(0.80, fast))


def test_what_was_too_fast_is_approached_by_halves() -> None:
    def bolder(too_fast: float) -> list[float]:
        ruined = Proposal("a test's", "onnx", SHAPE, latency=too_fast)
        good = attempt(0.97, 1.0)
        return list(propose._wished([good, Attempt(ruined, tried(0.2, too_fast))]))

    assert bolder(0.1) == [1 / propose.BOLDER]
    assert bolder(0.64) == [pytest.approx(0.8)]
    assert not bolder(0.98)
    broken = Proposal("a test's", "onnx", SHAPE, latency=0.64)
    failed = Attempt(broken, Trial(tried(0.2, 0.64).recipe, failure="no operator for aten.odd"))
    assert list(propose._wished([attempt(0.97, 1.0), failed])) == [1 / propose.BOLDER]


def test_a_gap_that_is_not_worth_a_plan_is_left(menus: dict[str, Menu]) -> None:
    latency = whole(menus["onnx"]).latency
    slow, fast = attempt(0.99, 0.9 * latency), attempt(0.90, 0.5 * latency)
    assert following(menus, slow, fast)
    assert not following(menus, attempt(0.901, 0.9 * latency), fast)


def test_where_something_is_wished_the_nearest_student_is_tried(menus: dict[str, Menu]) -> None:
    smaller = Offer(NETWORK, Choice("student", "width 25 %"), {"layers.0": 16}, {"layers.1": 16})
    latency = whole(settle(menus["onnx"], [smaller])).latency
    attempts = [attempt(0.99, 1.5 * latency)]
    students = [STUDENT, smaller]
    found = list(next_shapes(attempts, menus, students, Limits(), TRAINING, Beliefs()))
    assert any("student width 25 %" in proposal.name for proposal in found)
    assert not any("student width 50 %" in proposal.name for proposal in found)


def test_new_shapes_leave_time_to_train_the_best_of_them_longer(menus: dict[str, Menu]) -> None:
    attempts = [attempt(0.99, 1e-4), attempt(0.97, 1e-5)]

    def networks(most: float) -> int:
        training = replace(TRAINING, most=most)
        found = next_shapes(attempts, menus, [STUDENT], Limits(), training, Beliefs())
        return len({one.reshaped for one in affordable(found, training)})

    assert networks(most=3000.0) > networks(most=300.0) == 1
