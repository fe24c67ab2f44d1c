"""Proposals lie between the fastest and the whole network, and follow the frontier from there."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from small_search import CHANNELS, linear, menu, narrowed, seconds, tried

from edgebuild.search import propose
from edgebuild.search.explain import explain
from edgebuild.search.further import PROMISING, further
from edgebuild.search.learn import Beliefs
from edgebuild.search.menu import Limits, Menu, offers_of, settle
from edgebuild.search.plan import appraise, fastest, plan, whole
from edgebuild.search.proposal import Attempt, Proposal, Shape
from edgebuild.search.propose import first_shapes, next_shapes, opening
from edgebuild.search.training import Training
from edgebuild.vocabulary.offer import NETWORK, Choice, Offer, Part, PartKind
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.recipe import Recipe
from edgebuild.vocabulary.trial import Trial
from edgebuild.vocabulary.units import Seconds

TRAINING = Training(first=100.0, most=3000.0, step=1.0)
STUDENT = Offer(NETWORK, Choice("student", "width 50 %"), {"layers.0": 32}, {"layers.1": 32})
WIDTHS = [narrowed("layers.0", "layers.1", kept, (1 - kept / CHANNELS) ** 2) for kept in (16, 32)]
SHAPE = ((Part("layers.0", PartKind.CHANNELS), Choice("prune", "keep 16 of 64")),)


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
    rounded = Attempt(Proposal("rounded", "onnx"), tried(0.95, 1e-4, divergence=0.01))
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


def attempt(
    score: float,
    latency: float,
    steps: int = 0,
    integer: bool = False,
    divergence: float = 0.0,
) -> Attempt:
    training = ((NETWORK, TRAINING.choice(steps)),) if steps else ()
    precision = Precision.INT8_DYNAMIC if integer else Precision.FP32
    precisions = {f"layers.{number}": precision for number in range(3)}
    shape = (*SHAPE, *training) if steps else ()
    trial = tried(score, latency, divergence=divergence)
    return Attempt(Proposal("a test's", "onnx", shape, precisions), trial)


def following(menus: dict[str, Menu], *attempts: Attempt) -> list[Proposal]:
    given = attempts, menus, [], Limits(), TRAINING, Beliefs()
    return [*further(attempts, TRAINING), *next_shapes(*given)]


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


def test_what_is_on_the_frontier_is_trained_longer(menus: dict[str, Menu]) -> None:
    proposals = following(menus, attempt(0.95, 1e-5), attempt(0.93, 1e-6, steps=100))
    longer = (*SHAPE, (NETWORK, Choice("distill", "400 steps, seed 0")))
    assert longer in [proposal.reshaped for proposal in proposals]


def test_what_lost_nothing_but_answers_otherwise_is_trained_longer(menus: dict[str, Menu]) -> None:
    shape = (*SHAPE, (NETWORK, TRAINING.choice(200)))

    def longest(divergence: float) -> int:
        trial = tried(1.0, 1e-6, divergence=divergence)
        proposals = following(menus, Attempt(Proposal("a test's", "onnx", shape), trial))
        own = [one for one in proposals if set(SHAPE) < set(one.reshaped)]
        return max((one.steps for one in own), default=0)

    assert longest(0.02) > 200
    assert longest(0.0) <= 200


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
        return len({one.reshaped for one in found})

    assert networks(most=3000.0) > networks(most=300.0) == 1


def test_what_is_beaten_is_not(menus: dict[str, Menu]) -> None:
    proposals = following(menus, attempt(0.95, 1e-6), attempt(0.93, 1e-5, steps=100))
    assert all("400 steps" not in str(proposal.reshaped) for proposal in proposals)


def test_what_was_trained_for_longer_does_not_speak_against_others(menus: dict[str, Menu]) -> None:
    def longer(steps: int) -> list[int]:
        other = Proposal("a test's", "onnx", ((STUDENT.part, STUDENT.choice),))
        trained = replace(other, reshaped=(*other.reshaped, (NETWORK, TRAINING.choice(steps))))
        rival = Attempt(trained, tried(0.95, 1e-6))
        found = following(menus, rival, attempt(0.93, 1e-5, steps=100))
        return [one.steps for one in found if set(SHAPE) < set(one.reshaped)]

    assert 400 in longer(200)
    assert 400 not in longer(100)


def test_a_shape_is_trained_longer_once_whatever_its_formats(menus: dict[str, Menu]) -> None:
    shapes = [((Part(f"layers.{n}", PartKind.CHANNELS), SHAPE[0][1]),) for n in range(PROMISING)]
    attempts = [
        Attempt(
            Proposal("a test's", format, (*shape, (NETWORK, TRAINING.choice(100)))),
            tried(0.9 + number / 100, (number + 1 + late) * 1e-6),
        )
        for number, shape in enumerate(shapes)
        for format, late in (("onnx", 0.0), ("tflite", -0.1))
    ]
    found = {one.reshaped for one in following(menus, *attempts) if one.steps == 400}
    assert found >= {(*shape, (NETWORK, TRAINING.choice(400))) for shape in shapes}


def test_what_has_the_most_to_gain_is_trained_longer_before_the_time_is_spent(
    menus: dict[str, Menu],
) -> None:
    shapes = [((Part(f"layers.{n}", PartKind.CHANNELS), SHAPE[0][1]),) for n in range(2)]
    unchanged = Attempt(Proposal("fp32", "onnx"), tried(1.0, 1e-4))

    def changed(shape: Shape, score: float, latency: float) -> Attempt:
        shape = (*shape, (NETWORK, TRAINING.choice(100)))
        recipe = Recipe("a test's", "onnx", (), (), shape)
        trial = replace(tried(score, latency), recipe=recipe)
        return Attempt(Proposal("a test's", "onnx", shape), trial)

    def longer(*figures: tuple[float, float], most: float) -> list[int]:
        attempts = [changed(shape, *each) for shape, each in zip(shapes, figures, strict=True)]
        training = replace(TRAINING, most=most)
        found = further([unchanged, *attempts], training)
        trained = [one.cut for one in found if one.steps == 400]
        return [shapes.index(cut) for cut in trained]

    # Slow and almost perfect, fast and worse: the first one's last point would be little.
    good, fast = (0.997, 2e-5), (0.985, 1e-6)
    assert longer(good, fast, most=500) == [1]
    assert longer(fast, good, most=500) == [0]
    assert longer(good, fast, most=900) == [1, 0]
    # A hair faster, and much worse: what the other one lost is what is to be gained.
    assert longer((0.97, 2e-6), (0.91, 1.9e-6), most=500) == [0]


def test_what_fared_worse_after_more_steps_is_left(menus: dict[str, Menu]) -> None:
    attempts = attempt(0.95, 1e-6, steps=100), attempt(0.94, 1.1e-6, steps=200)
    assert all(one.steps <= 200 for one in following(menus, *attempts))


def test_training_ends_at_the_most_steps_that_there_is_time_for(menus: dict[str, Menu]) -> None:
    proposals = following(menus, attempt(0.95, 1e-5), attempt(0.93, 1e-6, steps=800))
    assert max(one.steps for one in proposals) <= TRAINING.most


def test_integers_that_cost_score_are_trained_on_their_grid(menus: dict[str, Menu]) -> None:
    floating = attempt(0.97, 5e-6, steps=100)
    lossy = attempt(0.92, 1e-6, steps=100, integer=True)
    options = [c.option for one in following(menus, floating, lossy) for _, c in one.reshaped]
    assert any("qat int8" in option for option in options)
    exact = attempt(0.969, 1e-6, steps=100, integer=True)
    options = [c.option for one in following(menus, floating, exact) for _, c in one.reshaped]
    assert not any("qat int8" in option for option in options)


def test_rounding_is_left_alone_where_it_is_not_what_cost_the_score(
    menus: dict[str, Menu],
) -> None:
    attempts = [attempt(0.97, 5e-6, steps=100), attempt(0.92, 1e-6, steps=100, integer=True)]

    def options(by_rounding: float) -> list[str]:
        found = further(attempts, TRAINING, by_rounding=lambda _: by_rounding)
        return [choice.option for one in found for _, choice in one.reshaped]

    assert any("qat int8" in option for option in options(0.9))
    assert not any("qat int8" in option for option in options(0.1))


# ---- the explanation


def test_each_site_says_what_it_got_and_what_better_would_cost() -> None:
    given = menu(*WIDTHS)
    cheap = plan(given, Limits(latency=1.3 * fastest(given).latency))
    assert cheap is not None
    proposal = Proposal("a test's", "onnx", cheap.reshaped, cheap.precisions)
    found = {site.path: site for site in explain(given, proposal)}
    quantized = next(site for site in found.values() if site.choice == "int8-dynamic")
    assert quantized.better == "fp32"
    assert quantized.costs > 0
    assert quantized.saves == pytest.approx(0.02)


def test_a_changed_part_is_priced_against_leaving_it_as_it_was() -> None:
    given = menu(*WIDTHS)
    precisions = dict.fromkeys(given.layers, Precision.FP32)
    found = explain(given, Proposal("a test's", "onnx", SHAPE, precisions))
    changed = next(site for site in found if site.choice.startswith("prune"))
    whole, narrow = linear(), linear(CHANNELS, 16)
    reader = linear(16, CHANNELS)
    spared = 2 * seconds(whole, Precision.FP32) - sum(
        seconds(shape, Precision.FP32) for shape in (narrow, reader)
    )
    assert changed.better == "as it was"
    assert changed.costs == pytest.approx(spared)


def test_a_changed_part_shares_its_time_with_its_layers() -> None:
    given = menu(*WIDTHS)
    precisions = dict.fromkeys(given.layers, Precision.FP32)
    found = explain(given, Proposal("a test's", "onnx", SHAPE, precisions))
    assert {one.choice.startswith("prune") for one in found if one.is_shared} == {True}
    assert not any(one.is_shared for one in found if one.choice == "fp32")


@pytest.mark.parametrize(
    ("others", "untaken"),
    [
        (0, "no candidate that was tried has it"),
        (1, "1 candidate that has it was measured, and not chosen"),
        (2, "2 candidates that have it were measured, and not chosen"),
    ],
)
def test_a_better_choice_that_costs_nothing_says_what_became_of_it(
    others: int, untaken: str
) -> None:
    # Integers that are no faster: the float layer loses less, and takes as long.
    given = replace(menu(*WIDTHS), seconds=lambda shape, precision: Seconds(1e-3))
    precisions = dict.fromkeys(given.layers, Precision.INT8_DYNAMIC)
    own = Proposal("a test's", "onnx", (), precisions)
    rival = replace(own, precisions=dict.fromkeys(given.layers, Precision.FP32))
    elsewhere = replace(rival, format="tflite")
    found = explain(given, own, [own, elsewhere, *[rival] * others])
    free = [one for one in found if one.better and one.costs <= 0]
    assert free
    assert {one.untaken for one in free} == {untaken}


def test_what_saves_no_more_than_noise_is_no_better_choice() -> None:
    given = menu(*WIDTHS)
    near = {path: {Precision.FP32: 0.0, Precision.INT8_DYNAMIC: 1e-6} for path in given.layers}
    precisions = dict.fromkeys(given.layers, Precision.INT8_DYNAMIC)
    found = explain(replace(given, precisions=near), Proposal("a test's", "onnx", (), precisions))
    assert {one.better for one in found} == {""}


def test_a_first_training_is_long_enough_to_tell_something_where_there_is_time() -> None:
    hurried = Training(first=10.0, most=30.0, step=0.3)
    patient = Training(first=10.0, most=300.0, step=0.3)
    assert hurried.first_steps(1.0) == 100
    assert patient.first_steps(1.0) == 200
    assert patient.most_steps(1.0) == 800
