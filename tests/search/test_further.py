"""What is promising is trained longer and rounded more finely, first what has the most to gain."""

from __future__ import annotations

from dataclasses import replace

from small_search import SHAPE, STUDENT, TRAINING, attempt, tried

from edgebuild.search.further import PROMISING, further
from edgebuild.search.proposal import Attempt, Proposal, Shape
from edgebuild.vocabulary.offer import NETWORK, Choice, Part, PartKind
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.recipe import Recipe

QUANTIZED = attempt(1.0, 1.0, integer=True).proposal.precisions


def longer_or_finer(*attempts: Attempt) -> list[Proposal]:
    return list(further(attempts, TRAINING))


def test_what_is_on_the_frontier_is_trained_longer() -> None:
    proposals = longer_or_finer(attempt(0.95, 1e-5), attempt(0.93, 1e-6, steps=100))
    longer = (*SHAPE, (NETWORK, Choice("distill", "400 steps, seed 0")))
    assert longer in [proposal.reshaped for proposal in proposals]


def test_what_lost_nothing_but_answers_otherwise_is_trained_longer() -> None:
    shape = (*SHAPE, (NETWORK, TRAINING.choice(200)))

    def longest(divergence: float) -> int:
        trial = tried(1.0, 1e-6, divergence=divergence)
        proposals = longer_or_finer(Attempt(Proposal("a test's", "onnx", shape), trial))
        own = [one for one in proposals if set(SHAPE) < set(one.reshaped)]
        return max((one.steps for one in own), default=0)

    assert longest(0.02) > 200
    assert longest(0.0) <= 200


def test_what_is_beaten_is_not() -> None:
    proposals = longer_or_finer(attempt(0.95, 1e-6), attempt(0.93, 1e-5, steps=100))
    assert all("400 steps" not in str(proposal.reshaped) for proposal in proposals)


def test_what_was_trained_for_longer_does_not_speak_against_others() -> None:
    def longer(steps: int) -> list[int]:
        other = Proposal("a test's", "onnx", ((STUDENT.part, STUDENT.choice),))
        trained = replace(other, reshaped=(*other.reshaped, (NETWORK, TRAINING.choice(steps))))
        rival = Attempt(trained, tried(0.95, 1e-6))
        found = longer_or_finer(rival, attempt(0.93, 1e-5, steps=100))
        return [one.steps for one in found if set(SHAPE) < set(one.reshaped)]

    assert 400 in longer(200)
    assert 400 not in longer(100)


def test_a_shape_is_trained_longer_once_whatever_its_formats() -> None:
    shapes = [((Part(f"layers.{n}", PartKind.CHANNELS), SHAPE[0][1]),) for n in range(PROMISING)]
    attempts = [
        Attempt(
            Proposal("a test's", format, (*shape, (NETWORK, TRAINING.choice(100)))),
            tried(0.9 + number / 100, (number + 1 + late) * 1e-6),
        )
        for number, shape in enumerate(shapes)
        for format, late in (("onnx", 0.0), ("tflite", -0.1))
    ]
    found = {one.reshaped for one in longer_or_finer(*attempts) if one.steps == 400}
    assert found >= {(*shape, (NETWORK, TRAINING.choice(400))) for shape in shapes}


def test_what_has_the_most_to_gain_is_trained_longer_before_the_time_is_spent() -> None:
    shapes: list[Shape] = [
        ((Part(f"layers.{n}", PartKind.CHANNELS), SHAPE[0][1]),) for n in range(2)
    ]
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


def test_what_nothing_can_be_done_about_takes_no_turn() -> None:
    """There is no time to train these any longer, and there is for the slow one."""
    shapes: list[Shape] = [
        ((Part(f"layers.{number}", PartKind.CHANNELS), SHAPE[0][1]),) for number in range(4)
    ]
    steps = (800, 800, 800, 100)
    attempts = [
        Attempt(
            Proposal("a test's", "onnx", (*shape, (NETWORK, TRAINING.choice(each)))),
            tried(0.95 + number / 100, (number + 1) * 1e-6),
        )
        for number, (shape, each) in enumerate(zip(shapes, steps, strict=True))
    ]
    found = list(further(attempts, replace(TRAINING, most=900)))
    assert [(one.cut, one.steps) for one in found] == [(shapes[-1], 400)]


def test_what_fared_worse_after_more_steps_is_left() -> None:
    attempts = attempt(0.95, 1e-6, steps=100), attempt(0.94, 1.1e-6, steps=200)
    assert all(one.steps <= 200 for one in longer_or_finer(*attempts))


def test_training_ends_at_the_most_steps_that_there_is_time_for() -> None:
    proposals = longer_or_finer(attempt(0.95, 1e-5), attempt(0.93, 1e-6, steps=800))
    assert max(one.steps for one in proposals) <= TRAINING.most


def test_integers_that_cost_score_are_trained_on_their_grid() -> None:
    floating = attempt(0.97, 5e-6, steps=100)
    lossy = attempt(0.92, 1e-6, steps=100, integer=True)
    options = [c.option for one in longer_or_finer(floating, lossy) for _, c in one.reshaped]
    assert any("qat int8" in option for option in options)
    exact = attempt(0.969, 1e-6, steps=100, integer=True)
    options = [c.option for one in longer_or_finer(floating, exact) for _, c in one.reshaped]
    assert not any("qat int8" in option for option in options)


def test_rounding_is_left_alone_where_it_is_not_what_cost_the_score() -> None:
    attempts = [attempt(0.97, 5e-6, steps=100), attempt(0.92, 1e-6, steps=100, integer=True)]

    def options(by_rounding: float) -> list[str]:
        found = further(attempts, TRAINING, by_rounding=lambda _: by_rounding)
        return [choice.option for one in found for _, choice in one.reshaped]

    assert any("qat int8" in option for option in options(0.9))
    assert not any("qat int8" in option for option in options(0.1))


def test_what_lost_much_by_rounding_alone_is_rounded_more_finely_and_trained_no_longer() -> None:
    floating = attempt(0.99, 5e-6, steps=100)

    def options(score: float, by_rounding: float) -> list[str]:
        attempts = [floating, attempt(score, 1e-6, steps=100, integer=True)]
        found = further(attempts, TRAINING, by_rounding=lambda _: by_rounding)
        return [c.option for one in found if one.precisions == QUANTIZED for _, c in one.reshaped]

    assert any("qat int8" in option for option in options(0.85, 0.9))
    assert not any("400 steps, seed" in option for option in options(0.85, 0.9))
    assert not options(0.85, 0.3)
    assert not options(0.6, 0.9)


def test_the_fastest_is_tried_with_all_layers_alike() -> None:
    precisions = (Precision.FP32, Precision.INT8_STATIC, Precision.INT8_DYNAMIC)

    def alike(*attempts: Attempt) -> list[tuple[int, Precision]]:
        found = further(attempts, TRAINING, precisions=precisions)
        kept = [one for one in found if len(set(one.precisions.values())) == 1]
        return [(one.steps, *set(one.precisions.values())) for one in kept]

    fast = attempt(0.95, 1e-6, steps=100, integer=True)
    mixed = {**fast.proposal.precisions, "layers.0": Precision.FP32}
    fast = replace(fast, proposal=replace(fast.proposal, precisions=mixed))
    slow = attempt(0.97, 5e-6, steps=100)
    tried = set(alike(slow, fast))
    assert tried >= {(n, one) for n in (100, 400) for one in precisions[1:]}
    assert {one for _, one in alike(slow)} == {Precision.FP32}
