"""Distillation brings a pruned network back to its teacher, whatever its outputs are."""

from __future__ import annotations

import copy
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_build import failing, images, network, workload
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from zoo import ZOO, Specimen, samples

from edgebuild import Workload
from edgebuild.methods import _distill_data as data
from edgebuild.methods import _distill_loss as loss
from edgebuild.methods import _distill_memory
from edgebuild.methods import distill as distilling
from edgebuild.methods._batch_norms import fold_batch_norms
from edgebuild.methods._distill_lesson import Lesson, common_layout, open_lesson, with_memory
from edgebuild.methods._distill_memory import memory_of
from edgebuild.methods._distill_plan import Grid, Plan
from edgebuild.methods._distill_train import Training, rate_at, train
from edgebuild.methods._fake_quantization import (
    RoundedInput,
    RoundedWeight,
    fake_quantize,
    leave_rounded,
)
from edgebuild.methods.distill import Distill, seconds_per_step
from edgebuild.vocabulary.contracts import Workplace
from edgebuild.vocabulary.errors import MethodFailed
from edgebuild.vocabulary.offer import NETWORK, Choice, Part, PartKind
from edgebuild.vocabulary.precision import LayerKind, Precision
from edgebuild.vocabulary.silence import Silence
from edgebuild.vocabulary.target import Activations, RuntimeFacts

QUICK = Distill(learning_rate=1e-2, looks=3)


def trained(
    student: nn.Module,
    given_workload: Workload,
    option: str = "60 steps, seed 0",
    method: Distill = QUICK,
    scratch: Path | None = None,
    progress: Any = None,
) -> nn.Module:
    place = Workplace(progress or Silence(), scratch)
    return method.apply(student, {NETWORK: Choice("distill", option)}, given_workload, place)


def disturbed(given_network: nn.Module, noise: float = 0.5) -> nn.Module:
    """A copy with other weights, as if a method had damaged it."""
    student = copy.deepcopy(given_network)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in student.parameters():
            weight += (
                noise * weight.std(correction=0) * torch.randn(weight.shape, generator=generator)
            )
    return student


def normalized() -> Specimen:
    """A network with BatchNorm, small enough to be trained often."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 4),
        )
        for _ in range(30):
            layers.train()(torch.randn(32, 3, 8, 8))
    return Specimen("normalized", layers.eval(), (torch.zeros(1, 3, 8, 8),))


def zoo_workload(specimen: Specimen) -> Workload:
    return Workload(
        name=specimen.name,
        network=specimen.network,
        example=specimen.example,
        calibration=samples(specimen, 64, 0),
        validation=samples(specimen, 32, 1),
        test=samples(specimen, 1, 2),
    )


def error(student: nn.Module, teacher: nn.Module, split: Any) -> float:
    """Squared error of the outputs as a share of their variance."""
    wanted, got = (
        [
            loss.leaves(one(*(sample if isinstance(sample, tuple) else (sample,))))
            for sample, _ in split
        ]
        for one in (teacher, student)
    )
    pairs = [
        (torch.cat(first), torch.cat(second))
        for first, second in zip(zip(*wanted, strict=True), zip(*got, strict=True), strict=True)
    ]
    shares = [(first - second).square().mean() / first.var() for first, second in pairs]
    return torch.stack(shares).mean().item()


def states(one: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in one.state_dict().items()}


def assert_same(first: nn.Module, second: nn.Module | dict[str, Tensor]) -> None:
    others = second if isinstance(second, dict) else second.state_dict()
    assert list(first.state_dict()) == list(others)
    for name, value in first.state_dict().items():
        assert torch.equal(value, others[name]), name


# ---- what a choice says

PLANS = st.builds(
    Plan,
    steps=st.integers(1, 10**6),
    grid=st.sampled_from([None, *Grid]),
    seed=st.integers(0, 10**6),
)


@given(PLANS)
def test_a_plan_is_read_as_it_was_written(plan: Plan) -> None:
    assert Plan.parse(str(plan)) == plan


def test_a_plan_reads_like_a_sentence() -> None:
    assert Plan.parse("400 steps, seed 0") == Plan(400)
    assert Plan.parse("200 steps, qat int8, seed 3") == Plan(200, Grid.INT8, 3)


@pytest.mark.parametrize("text", ["", "0 steps, seed 0", "5 steps", "5 steps, qat int2, seed 0"])
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(MethodFailed, match="the network: distill cannot read"):
        Plan.parse(text)


# ---- data


def test_batches_pass_over_all_rows_in_changing_orders() -> None:
    drawn = np.concatenate([data.batch_numbers(step, 4, 10, seed=0) for step in range(5)])
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert list(drawn[:10]) != list(drawn[10:])
    assert list(data.batch_numbers(2, 4, 10, 0)) == list(drawn[8:12])
    assert list(data.batch_numbers(2, 4, 10, 1)) != list(drawn[8:12])


def test_rows_are_taken_at_even_distances() -> None:
    with data.open_rows(images(10, 0), (torch.zeros(1, 1, 8, 8),), "a test's") as rows:
        assert list(rows.evenly(5)) == [0, 2, 4, 6, 8]
        assert list(rows.evenly(99)) == list(range(10))
        (taken,) = rows.take(np.array([3]))
        assert torch.equal(taken, images(10, 0)[3][0])


def test_a_large_split_stays_in_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "BYTES_IN_MEMORY", 100)
    with data.open_rows(images(10, 0), (torch.zeros(1, 1, 8, 8),), "a test's") as rows:
        assert isinstance(rows.inputs[0], np.memmap)
        assert torch.equal(rows.take(np.array([3]))[0], images(10, 0)[3][0])


def test_varied_images_stay_in_range_and_differ() -> None:
    image = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    (once,), (again,), (other,) = (data.varied((image,), data.seeded(seed)) for seed in (0, 0, 1))
    assert once.min() >= image.min()
    assert once.max() <= image.max()
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert not any(torch.equal(old, new) for old, new in zip(image, once, strict=True))


def test_inputs_of_one_sample_are_mixed_with_those_of_the_same_other_one() -> None:
    """A camera's image and the speed that belongs to it must stay together."""
    numbers = torch.arange(16.0)
    image = numbers.reshape(16, 1, 1, 1).expand(16, 1, 4, 4).contiguous()
    mixed_image, mixed_speed = data.varied((image, 2 * numbers[:, None]), data.seeded(0))
    # What is left is the noise, ten percent of the standard deviation, and the range's ends.
    assert (mixed_image.mean(dim=(1, 2, 3)) - mixed_speed[:, 0] / 2).abs().mean() < 1.0


@pytest.mark.parametrize(("name", "expected"), [("bert", False), ("gru", False), ("vit", True)])
def test_only_images_are_varied(name: str, expected: bool) -> None:
    specimen = ZOO[name]()
    with data.open_rows(samples(specimen, 2, 0), specimen.example, name) as rows:
        assert rows.are_images is expected


# ---- loss

LOGITS = st.integers(0, 1000).map(
    lambda seed: torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)) * 3
)


@given(LOGITS, LOGITS, st.sampled_from([1.0, 2.0, 4.0]))
def test_divergence_is_zero_for_the_same_classes_alone(
    first: Tensor, second: Tensor, temperature: float
) -> None:
    output = loss.read_output(first, None)
    assert output.reading is loss.Reading.LOGITS
    # Softmax does not see a constant.
    assert float(output.distance(first + 7, first, temperature)) == pytest.approx(0, abs=1e-4)
    if not torch.equal(first, second):
        assert float(output.distance(second, first, temperature)) > 0


@given(LOGITS, LOGITS)
def test_probabilities_diverge_as_their_logits_do(first: Tensor, second: Tensor) -> None:
    logits = loss.Output(loss.Reading.LOGITS, 1.0)
    probabilities = loss.read_output(first.softmax(dim=1), None)
    assert probabilities.reading is loss.Reading.PROBABILITIES
    expected = float(logits.distance(second, first, 2.0))
    found = float(probabilities.distance(second.softmax(1), first.softmax(1), 2.0))
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("answer", "has_class_ids"),
    [
        (torch.randn(9, 1), None),
        (torch.randn(9, 4, 3), None),
        (torch.randn(9, 4, 8, 8), None),
        (functional.normalize(torch.randn(9, 16)), None),
        (torch.randn(9, 4), False),
    ],
    ids=["a number", "boxes", "a dense map", "an embedding", "four numbers, by their labels"],
)
def test_other_outputs_are_compared_by_squared_error(
    answer: Tensor, has_class_ids: bool | None
) -> None:
    output = loss.read_output(answer, has_class_ids)
    assert output.reading is loss.Reading.VALUES
    mean = answer.mean(dim=0).expand(answer.shape)
    assert float(output.distance(mean, answer)) == pytest.approx(1.0)
    scaled = loss.read_output(1000 * answer, has_class_ids)
    assert float(scaled.distance(1000 * mean, 1000 * answer)) == pytest.approx(1.0)


def test_an_output_that_does_not_vary_is_compared_by_its_size() -> None:
    assert loss.spread(torch.full((4, 2), 3.0)) == pytest.approx(9.0)
    assert loss.spread(torch.zeros(4, 2)) == 1.0


# ---- training


def test_a_damaged_network_answers_like_its_teacher_again() -> None:
    given_workload = workload()
    student = disturbed(given_workload.network)
    before, teacher = states(student), states(given_workload.network)
    better = trained(student, given_workload, "150 steps, seed 0")
    assert not any(module.training for module in better.modules())
    was = error(student, given_workload.network, given_workload.test)
    now = error(better, given_workload.network, given_workload.test)
    assert now < 0.3 * was
    assert_same(student, before)
    assert_same(given_workload.network, teacher)


@pytest.mark.parametrize("name", ["residual-cnn", "u-net", "bert", "gru", "tuple-output"])
def test_families_learn_from_their_teacher(name: str) -> None:
    """Feature maps, dense maps, token ids and several outputs; BatchNorm, LayerNorm and none."""
    specimen = ZOO[name]()
    given_workload = zoo_workload(specimen)
    student = disturbed(specimen.network, 0.2)
    better = trained(student, given_workload, "25 steps, seed 0")
    was = error(student, specimen.network, given_workload.validation)
    assert error(better, specimen.network, given_workload.validation) < 0.8 * was


def test_the_same_seed_gives_the_same_network_and_leaves_the_callers_randomness() -> None:
    given_workload = workload()
    student = disturbed(given_workload.network)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = trained(student, given_workload)
    assert torch.equal(torch.rand(1), expected)
    assert_same(first, trained(student, given_workload))
    other = trained(student, given_workload, "60 steps, seed 1")
    assert not torch.equal(first[0].weight, other[0].weight)  # type: ignore[index]


def test_training_that_finds_no_better_state_changes_nothing() -> None:
    given_workload = workload()
    ruinous = replace(QUICK, learning_rate=1e3)
    kept = trained(given_workload.network, given_workload, method=ruinous)
    assert_same(kept, given_workload.network)


def test_a_state_that_training_has_ruined_is_given_up_for_the_best_and_a_lower_rate() -> None:
    given_workload = workload()
    student = disturbed(given_workload.network)
    with QUICK.training(student, given_workload, Plan(60)) as training:
        training.begin()
        rate = training.highest_rate
        training.learn()
        training.rewind()
        assert_same(training.student, student)
        assert training.highest_rate == rate / 8


def test_only_a_score_below_the_first_one_lowers_the_learning_rate() -> None:
    teachers = 1.0
    looks = iter([0.9, 0.5, teachers, 0.895, 0.95])
    given_workload = replace(workload(), score=lambda outputs, labels: next(looks))
    method, student = replace(QUICK, looks=4), disturbed(given_workload.network)
    with method.training(student, given_workload, Plan(60)) as training:
        rate = training.highest_rate
        train(training, Silence(), None)
    assert training.highest_rate == rate / 8
    assert training.best_score == 0.95


def test_of_equal_scores_the_one_that_was_trained_for_longer_is_kept() -> None:
    given_workload = replace(workload(), score=lambda outputs, labels: 1.0)
    student = disturbed(given_workload.network)
    kept = trained(student, given_workload)
    assert error(kept, given_workload.network, given_workload.test) < 0.8 * error(
        student, given_workload.network, given_workload.test
    )


def test_training_ends_when_patience_does() -> None:
    given_workload = replace(workload(), score=lambda outputs, labels: 1.0)
    bar = Counting()
    trained(
        disturbed(given_workload.network),
        given_workload,
        "400 steps, seed 0",
        replace(QUICK, looks=21, patience=2),
        progress=bar,
    )
    assert bar.steps == 40


def _steps_with_scores(teachers: float, *scores: float) -> int:
    """How many of sixty steps are taken by a student that scores these at its looks."""
    given_workload = workload()
    student = disturbed(given_workload.network)
    with replace(QUICK, looks=4).training(student, given_workload, Plan(60)) as training:
        training.judge = Scripted(teachers, list(scores))  # type: ignore[assignment]
        train(training, Silence(), None)
        return training.step


@dataclass
class Scripted:
    """Scores that are known beforehand; the last one stays."""

    goal: float
    scores: list[float]
    numbers: np.ndarray = field(default_factory=lambda: np.arange(8))

    def __call__(self, student: nn.Module) -> float:
        return self.scores.pop(0) if len(self.scores) > 1 else self.scores[0]


def test_training_that_leads_nowhere_is_given_up() -> None:
    assert _steps_with_scores(1.0, 0.1, 0.12) == 20


@pytest.mark.parametrize(
    ("teachers", "scores"),
    [
        (1.0, (0.1, 0.35, 0.36)),  # At twice this pace it would come near.
        (1.0, (0.5, 0.5, 0.5)),  # It has come halfway.
        (0.1, (0.01, 0.08, 0.08)),  # The teacher itself scores little.
        (0.0, (-5.0, -5.0)),  # Distances from the teacher have no halfway.
        (-0.2, (-5.0, -5.0)),  # Nor have errors with a minus.
    ],
)
def test_training_with_prospects_goes_on(teachers: float, scores: tuple[float, ...]) -> None:
    assert _steps_with_scores(teachers, *scores) == 60


def test_the_score_sees_the_outputs_as_the_network_returns_them() -> None:
    specimen = ZOO["dict-output"]()
    seen = []

    def score(outputs: Any, labels: Any) -> float:
        seen.append(({name: array.shape for name, array in outputs.items()}, labels.shape))
        return 0.0

    labeled = [(inputs, np.array([1])) for inputs, _ in samples(specimen, 600, 1)]
    given_workload = replace(zoo_workload(specimen), validation=labeled, score=score)
    trained(specimen.network, given_workload, "1 steps, seed 0")
    # Three looks, each at the whole split: a score may not be one of a part.
    assert seen == 3 * [({"classes": (600, 8), "pose": (600, 8)}, (600,))]


@pytest.mark.parametrize(("one", "other", "is_known"), [(0, 1, True), (1, 0, False)])
def test_labels_that_the_teacher_does_not_know_are_left_alone(
    one: int, other: int, is_known: bool
) -> None:
    """Half of the images are bright, which the teacher's first class is for."""
    teacher = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        teacher[-1].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        teacher[-1].bias.zero_()
    labeled = [
        (image.abs() * sign, np.array([one if sign > 0 else other]))
        for (image, _), sign in zip(images(64, 3), 32 * [1, -1], strict=True)
    ]
    given_workload = replace(workload(), network=teacher.eval(), calibration=labeled)
    with QUICK.training(teacher, given_workload, Plan(20)) as training:
        assert (training.lesson.labeled == 0) == is_known


def test_labels_are_learned_too_if_they_are_to_be() -> None:
    """The teacher knows nothing of these labels."""
    given_workload = workload()
    sides = [(image, np.array([int(image.mean() > 0)])) for image, _ in images(64, 3)]
    given_workload = replace(
        given_workload,
        calibration=sides,
        validation=sides,
        score=lambda outputs, labels: float(np.mean(outputs.argmax(1) == labels)),
    )
    by_label = replace(QUICK, learning_rate=5e-2, label_weight=1.0, feature_weight=0.0)
    learned = trained(given_workload.network, given_workload, "80 steps, seed 0", by_label)
    found = torch.cat([learned(image).argmax(1) for image, _ in sides])
    assert float((found.numpy() == np.concatenate([side for _, side in sides])).mean()) > 0.9


def test_statistics_of_batch_norm_follow_and_then_stay() -> None:
    specimen = normalized()
    student = copy.deepcopy(specimen.network)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            module.running_var *= 9
    better = trained(student, zoo_workload(specimen), "40 steps, seed 0")
    was, now = student[1], better[1]  # type: ignore[index]
    wanted = specimen.network[1].running_var  # type: ignore[index]
    assert (now.running_var - wanted).norm() < 0.5 * (was.running_var - wanted).norm()


@pytest.mark.parametrize("when", ["looked at", "finished"])
def test_a_student_is_scored_with_statistics_of_many_batches_at_once(when: str) -> None:
    specimen = normalized()
    with QUICK.training(specimen.network, zoo_workload(specimen), Plan(50)) as training:
        training.begin()
        training.step = 32
        # Not those of the latest batch alone, with a trace of those before it.
        steps = range(28, 32) if when == "looked at" else range(32)
        batches = [training.lesson.plain_inputs(step)[0] for step in steps]
        if when == "looked at":
            training.look()
        else:
            training.finish()
    seen = [specimen.network[0](batch) for batch in batches]  # type: ignore[index]
    mean = torch.stack([one.mean((0, 2, 3)) for one in seen]).mean(0)
    variance = torch.stack([one.var((0, 2, 3)) for one in seen]).mean(0)
    norm = training.student[1]  # type: ignore[index]
    assert torch.allclose(norm.running_mean, mean, atol=1e-5)
    assert torch.allclose(norm.running_var, variance, atol=1e-4)
    assert norm.momentum == 0.1


@pytest.mark.parametrize(
    ("light_step", "plain"),
    [
        # 16 images in 100 batches of 32 come up often enough for half of each to be varied.
        (0.0, 16),
        # A network as small as this one gets as many varied ones again.
        (QUICK.light_step, 32),
    ],
)
def test_a_step_is_the_same_whatever_came_before_it(light_step: float, plain: int) -> None:
    given_workload = workload()
    with data.open_rows(given_workload.calibration, given_workload.example, "a test's") as rows:
        lesson = open_lesson(
            *(given_workload.network, disturbed(given_workload.network), rows, Plan(100)),
            replace(QUICK, light_step=light_step),
        )
        assert (lesson.batch_size, lesson.varied_rows) == (2 * plain, plain)
        (first,) = lesson.batch(7)[1]
        lesson.batch(3)
        assert torch.equal(lesson.batch(7)[1][0], first)
        numbers, _ = lesson.batch(7)
        assert torch.equal(first[:plain], rows.take(numbers[:plain])[0])
        assert not torch.equal(first[plain:], rows.take(numbers[plain:])[0])
        assert torch.equal(lesson.plain_inputs(7)[0], rows.take(numbers)[0])


def test_only_networks_that_are_light_get_more_images() -> None:
    given_workload = workload()
    network = given_workload.network
    with data.open_rows(given_workload.calibration, given_workload.example, "a test's") as rows:
        with FlopCounterMode(display=False) as counter:
            network(*rows.take(np.arange(1)))
        # Student and teacher are alike: forward and backward, twice the rows, and the teacher once.
        step = 32 * (2 * 3 + 1) * counter.get_total_flops()
        sizes = [
            open_lesson(
                network, disturbed(network), rows, Plan(1), replace(QUICK, light_step=limit)
            ).batch_size
            for limit in (step, step - 1)
        ]
    # Of the 16 images, none twice where they are not varied.
    assert sizes == [64, 16]


@pytest.mark.parametrize(("rows_worth", "expected"), [(33, 32), (20, 20), (2, 8)])
def test_a_step_of_heavy_networks_has_fewer_images(rows_worth: int, expected: int) -> None:
    given_workload = replace(workload(), calibration=images(64, 5))
    network = given_workload.network
    with data.open_rows(given_workload.calibration, given_workload.example, "a test's") as rows:
        with FlopCounterMode(display=False) as counter:
            network(*rows.take(np.arange(1)))
        limit = (3 + 1) * counter.get_total_flops() * rows_worth
        method = replace(QUICK, light_step=0.0, heavy_step=limit)
        lesson = open_lesson(network, disturbed(network), rows, Plan(1), method)
        assert lesson.batch_size == expected


def test_of_varied_images_the_teacher_is_asked_and_of_others_remembered() -> None:
    given_workload = workload()
    network = given_workload.network
    with data.open_rows(given_workload.calibration, given_workload.example, "a test's") as rows:
        asked = open_lesson(
            network, disturbed(network), rows, Plan(9), replace(QUICK, feature_weight=0.0)
        )
        assert asked.varied_rows == 32
        remembered = with_memory(asked, network)
        assert len(remembered.known[0]) == len(rows)
        student = disturbed(network)
        first, second = (one.loss(student, 4).item() for one in (asked, remembered))
        assert first == pytest.approx(second, rel=1e-4)


def test_what_the_teacher_said_is_remembered_exactly() -> None:
    specimen = ZOO["gru"]()
    with data.open_rows(samples(specimen, 64, 0), specimen.example, "a test's") as rows:
        asked = open_lesson(
            specimen.network,
            disturbed(specimen.network),
            rows,
            Plan(9),
            replace(QUICK, feature_weight=0.0),
        )
        remembered = with_memory(asked, specimen.network)
        assert with_memory(asked, specimen.network).known is remembered.known
        assert not asked.known
        assert len(remembered.known[0]) == 64
        student = disturbed(specimen.network)
        first, second = (one.loss(student, 4).item() for one in (asked, remembered))
        assert first == pytest.approx(second, rel=1e-4)


def test_of_the_same_batches_a_teacher_is_asked_once_whoever_learns() -> None:
    given_workload = workload()
    network = given_workload.network
    settings = replace(QUICK, feature_weight=0.0, batch_size=8)
    with data.open_rows(given_workload.calibration, given_workload.example, "a test's") as rows:

        def lesson(steps: int) -> Lesson:
            opened = open_lesson(network, disturbed(network), rows, Plan(steps), settings)
            return with_memory(opened, network)

        def surprise(one: Lesson) -> float:
            return one.loss(disturbed(network), 0).item()

        # So few steps that it is not asked about all rows.
        short = lesson(1)
        assert short.varied_rows
        assert not short.known
        first = surprise(short)
        mute = nn.Module()
        assert surprise(replace(lesson(1), teacher=mute)) == first
        # A longer lesson knows the plain rows from elsewhere, and varied ones from the short one.
        long = lesson(9)
        assert len(long.known[0]) == len(rows)
        assert surprise(replace(long, teacher=mute)) == pytest.approx(first, rel=1e-4)
        # What others know since then changes no bit of a short lesson.
        assert surprise(lesson(1)) == first
        # Nor is it asked about variations that come again.
        knowing = replace(long, teacher=mute)
        assert math.isfinite(knowing.loss(disturbed(network), long.drawings).item())
        with pytest.raises(NotImplementedError):
            replace(long, teacher=mute).loss(disturbed(network), 1)


def test_what_another_teacher_said_makes_room_when_it_is_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owner = nn.Linear(1, 1)
    first = memory_of(owner, "first")
    first.answers((0,), lambda: [torch.zeros(4)])
    assert memory_of(owner, "second") is not first
    assert memory_of(owner, "first") is first
    monkeypatch.setattr(_distill_memory, "BYTES_OF_ANSWERS", first.nbytes - 1)
    memory_of(owner, "third")
    assert memory_of(owner, "first") is not first


def test_a_teacher_whose_weights_have_changed_is_asked_again() -> None:
    specimen = ZOO["gru"]()
    settings = replace(QUICK, feature_weight=0.0)
    with data.open_rows(samples(specimen, 64, 0), specimen.example, "a test's") as rows:
        said = []
        for _ in range(2):
            teacher = copy.deepcopy(specimen.network)
            asked = open_lesson(teacher, disturbed(specimen.network), rows, Plan(9), settings)
            said.append(with_memory(asked, specimen.network).known[0])
            with torch.no_grad():
                next(specimen.network.parameters()).add_(0.5)
        assert not torch.equal(*said)


def test_layers_of_the_same_shape_are_compared() -> None:
    teacher = network()
    student = copy.deepcopy(teacher)
    student[2] = nn.Sequential(nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 3, padding=1))
    student[4] = nn.Conv2d(8, 12, 3, stride=2, padding=1)
    student[8] = nn.Linear(12, 4)
    shared = loss.shared_features(teacher, student, (images(9, 0)[0][0],), 6)
    # The fourth layer has lost channels, and the last one's output is compared anyway.
    assert shared == ["0", "2"]
    with loss.watching(teacher, shared) as wanted:
        teacher(images(1, 0)[0][0])
    assert loss.feature_distance(wanted, wanted, dict.fromkeys(shared, 1.0)).item() == 0.0


@pytest.mark.parametrize(("channels", "compared"), [(12, ["0", "2"]), (2, [])])
def test_small_students_are_spared_the_features(channels: int, compared: list[str]) -> None:
    teacher, given_workload = network(), workload()
    student = copy.deepcopy(teacher)
    student[2] = nn.Sequential(nn.Conv2d(8, channels, 1), nn.Conv2d(channels, 8, 3, padding=1))
    if not compared:
        student[4], student[8] = nn.Conv2d(8, 2, 3, stride=2, padding=1), nn.Linear(2, 4)
    with data.open_rows(given_workload.calibration, given_workload.example, "a test's") as rows:
        lesson = open_lesson(teacher, student, rows, Plan(9), QUICK)
    assert list(lesson.features)[:2] == compared


# Trains what hung for good: the gradient of a strided kernel of one pixel, channels last.
STRIDED = """
import torch
from edgebuild.methods._distill_lesson import common_layout, lay_out, laid_out

torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Conv2d(4, 32, 1, stride=2))
inputs = (torch.randn(64, 4, 28, 28),)
layout = common_layout((network,), inputs)
lay_out(network, layout)
for _ in range(400):
    network(*laid_out(inputs, layout)).square().mean().backward()
"""


@pytest.mark.slow
def test_a_layer_whose_gradient_would_never_come_is_trained_in_the_other_layout() -> None:
    command = [sys.executable, "-c", STRIDED]
    assert subprocess.run(command, check=False, timeout=120).returncode == 0


def test_a_view_of_a_feature_map_keeps_its_layout() -> None:
    class View(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 3, 3, padding=1)

        def forward(self, image: Tensor) -> Tensor:
            return self.layer(image).view(len(image), -1)  # type: ignore[no-any-return]

    inputs = (torch.randn(2, 1, 8, 8),)
    assert common_layout((View(),), inputs) is torch.contiguous_format
    assert common_layout((network(),), inputs) is torch.channels_last
    given_workload = replace(workload(), network=View().eval())
    student = disturbed(given_workload.network)
    better = trained(student, given_workload, "20 steps, seed 0")
    assert better.layer.weight.is_contiguous()  # type: ignore[union-attr, operator]


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [rate_at(step, 100) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(later < earlier for earlier, later in pairwise(rates[5:]))
    assert rates[-1] < 0.02


# ---- going on


class Counting(Silence):
    """Counts steps, and is the key that ends a run after some."""

    def __init__(self, most: int = 10**9) -> None:
        self.steps, self.most = 0, most
        self.notes: list[str] = []

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Counting]:
        yield self

    def advance(self, note: str = "") -> None:
        self.steps += 1
        self.notes.append(note)
        if self.steps == self.most:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("option", "rate"),
    [
        ("60 steps, seed 0", QUICK.learning_rate),
        ("60 steps, qat int4, seed 0", QUICK.learning_rate),
        # One that has to be lowered.
        ("60 steps, seed 0", 3.0),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bits(option: str, rate: float, tmp_path: Path) -> None:
    specimen = normalized()
    given_workload = zoo_workload(specimen)
    student = disturbed(specimen.network, 0.2)
    method = replace(QUICK, looks=4, learning_rate=rate)
    whole = trained(student, given_workload, option, method)
    for kill in (33, 55):
        with pytest.raises(KeyboardInterrupt):
            trained(student, given_workload, option, method, tmp_path, Counting(kill))
        assert len(list(tmp_path.iterdir())) == 1
    bar = Counting()
    assert_same(trained(student, given_workload, option, method, tmp_path, bar), whole)
    assert bar.steps == 60
    # What is finished is not trained again.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "learn", failing(AssertionError()))
        assert_same(trained(student, given_workload, option, method, tmp_path), whole)


def test_nobody_goes_on_from_the_run_of_another(tmp_path: Path) -> None:
    given_workload = workload()
    student = disturbed(given_workload.network)
    runs = [
        (student, given_workload, "2 steps, seed 0", QUICK),
        (student, given_workload, "3 steps, seed 0", QUICK),
        (student, given_workload, "2 steps, seed 1", QUICK),
        (student, given_workload, "2 steps, seed 0", replace(QUICK, temperature=1.0)),
        (given_workload.network, given_workload, "2 steps, seed 0", QUICK),
        (student, replace(given_workload, calibration=images(16, 9)), "2 steps, seed 0", QUICK),
        (student, replace(given_workload, network=student), "2 steps, seed 0", QUICK),
    ]
    for run in (*runs, *runs):
        trained(*run, tmp_path)
    assert len(list(tmp_path.iterdir())) == len(runs)


def test_the_bar_tells_the_score() -> None:
    bar = Counting()
    trained(disturbed(network()), workload(), "5 steps, seed 0", progress=bar)
    assert bar.steps == 5
    assert re.fullmatch(r"score -\d.*, best -\d.*", bar.notes[-1])


# ---- quantization-aware


def rounded_by_channel(weight: Tensor, steps: int, axis: int = 0) -> Tensor:
    """What an exporter makes of a weight."""
    others = [other for other in range(weight.ndim) if other != axis]
    scale = weight.abs().amax(dim=others, keepdim=True).clamp_min(1e-12) / steps
    return (weight / scale).round() * scale


@given(
    seed=st.integers(0, 1000),
    steps=st.sampled_from([7, 127]),
    axis=st.sampled_from([0, 1]),
    share=st.floats(0.25, 1.0),
)
def test_a_rounded_weight_is_found_again_by_rounding(
    seed: int, steps: int, axis: int, share: float
) -> None:
    weight = torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(seed))
    weight[1] = 0.0
    rounding = RoundedWeight(weight, axis, steps)
    with torch.no_grad():
        rounding.share.fill_(share)
        rounded = rounding(weight)
    torch.testing.assert_close(rounded_by_channel(rounded, steps, axis), rounded, atol=0, rtol=1e-5)


def test_clips_start_where_the_error_is_smallest() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    weight[:, 0] = 8.0
    with torch.no_grad():
        found = RoundedWeight(weight, 0, 7)(weight)
    unclipped = rounded_by_channel(weight, 7)
    assert ((found - weight) ** 2).sum() < ((unclipped - weight) ** 2).sum()


def test_gradients_pass_through_rounding_and_reach_the_clip() -> None:
    weight = torch.tensor([[1.0, 0.33, -0.7]], requires_grad=True)
    rounding = RoundedWeight(weight, 0, 7)
    with torch.no_grad():
        rounding.share.fill_(0.5)
    rounding(weight).sum().backward()
    assert weight.grad is not None
    # Inside the clip like an identity, outside nothing.
    assert weight.grad.tolist() == [[0.0, 1.0, 0.0]]
    scale = 0.5 / 7
    by_scale = 7 + (round(0.33 / scale) - 0.33 / scale) - 7
    assert rounding.share.grad is not None
    assert rounding.share.grad.tolist() == pytest.approx([by_scale / 7], abs=1e-5)


def test_activations_are_rounded_over_the_range_that_they_had() -> None:
    rounding = RoundedInput()
    values = torch.linspace(-1.0, 3.0, 1000)
    rounding.train()(values)
    rounded = rounding.eval()(torch.cat((values, torch.tensor([9.0]))))
    assert len(rounded[:-1].unique()) <= 256
    assert (rounded[:-1] - values).abs().max() <= 4 / 255
    assert float(rounded[-1]) == pytest.approx(3.0, abs=4 / 255)
    assert float(rounding(torch.zeros(1))) == 0.0


@pytest.mark.parametrize(
    "name", ["residual-cnn", "mobilenet-v2", "u-net", "ssdlite", "convnext", "vit", "two-inputs"]
)
def test_folding_leaves_no_batch_norm_and_the_same_outputs(name: str) -> None:
    specimen = ZOO[name]()
    folded = copy.deepcopy(specimen.network)
    fold_batch_norms(folded, specimen.example)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert error(folded, specimen.network, samples(specimen, 8, 0)) < 1e-8


@pytest.mark.parametrize("name", list(ZOO))
def test_rounding_is_put_in_and_taken_out_again(name: str) -> None:
    specimen = ZOO[name]()
    rounded = copy.deepcopy(specimen.network)
    modules = [module for module, _ in rounded.named_modules()]
    fake_quantize(rounded, 127)
    rounded.train()(*specimen.example)
    leave_rounded(rounded.eval())
    assert [module for module, _ in rounded.named_modules()] == modules
    assert not any(module._forward_pre_hooks for module in rounded.modules())
    assert [type(module) for module in rounded.modules()] == [
        type(module) for module in specimen.network.modules()
    ]
    assert list(rounded.state_dict()) == list(specimen.network.state_dict())
    for module in rounded.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
            axis = int(isinstance(module, nn.ConvTranspose2d))
            again = rounded_by_channel(module.weight, 127, axis)
            torch.testing.assert_close(again, module.weight, atol=0, rtol=1e-5)


def test_a_weight_that_an_embedding_shares_stays_as_it_is() -> None:
    words = nn.Embedding(9, 4)
    head = nn.Linear(4, 9, bias=False)
    head.weight = words.weight
    tied = nn.Sequential(words, nn.Linear(4, 4), head).eval()
    before = words.weight.detach().clone()
    fake_quantize(tied, 7)
    leave_rounded(tied)
    assert head.weight is words.weight
    assert torch.equal(words.weight, before)
    assert not torch.equal(tied[1].weight, rounded_by_channel(before[:4], 7))


def test_training_on_a_grid_beats_rounding_afterwards() -> None:
    specimen = normalized()
    given_workload = zoo_workload(specimen)
    found = trained(specimen.network, given_workload, "40 steps, qat int4, seed 0")
    plain = copy.deepcopy(specimen.network)
    fold_batch_norms(plain, specimen.example)
    for one in (plain, found):
        for module in one.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.data = rounded_by_channel(module.weight.data, 7)
    split = given_workload.validation
    after = error(plain, specimen.network, split)
    assert error(found, specimen.network, split) < 0.7 * after


def test_a_changed_network_learns_in_float_before_it_does_on_a_grid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plans: list[Plan] = []

    def noted(training: Training[Any, Any], *_: object) -> None:
        plans.append(training.lesson.plan)

    monkeypatch.setattr(distilling, "train", noted)
    given_workload, option = workload(), "40 steps, qat int8, seed 2"
    trained(given_workload.network, given_workload, option)
    assert plans == [Plan(40, Grid.INT8, 2)]
    plans.clear()
    trained(disturbed(given_workload.network), given_workload, option)
    assert plans == [Plan(30, None, 2), Plan(10, Grid.INT8, 2)]


# ---- offers and refusals

KERNELS = {LayerKind.CONVOLUTION: (Precision.INT8_STATIC,), LayerKind.LINEAR: ()}
RUNTIME = RuntimeFacts("onnxruntime", "1.32", 1, Activations.UINT8, 16, KERNELS)


def options(given_workload: Workload, runtime: RuntimeFacts = RUNTIME) -> list[str]:
    return [offer.choice.option for offer in Distill().offers(given_workload, runtime)]


def test_offers_are_a_ladder_of_passes_and_one_on_the_runtimes_grid() -> None:
    given_workload = replace(workload(), calibration=images(1600, 0))
    assert options(given_workload) == [
        "50 steps, seed 0",
        "150 steps, seed 0",
        "500 steps, seed 0",
        "150 steps, qat int8, seed 0",
    ]
    four_bit = {LayerKind.LINEAR: (Precision.INT4_WEIGHTS,)}
    assert options(given_workload, replace(RUNTIME, kernels=four_bit))[3:] == [
        "150 steps, qat int4, seed 0"
    ]
    assert len(options(given_workload, replace(RUNTIME, kernels={}))) == 3


def test_every_offer_can_be_carried_out() -> None:
    given_workload = workload()
    for offer in Distill().offers(given_workload, RUNTIME):
        assert offer.part == NETWORK
        plan = replace(Plan.parse(offer.choice.option), steps=2)
        trained(given_workload.network, given_workload, str(plan))


class _OneAtATime(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 4, 8)

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(image).reshape(1, 4)  # type: ignore[no-any-return]


class _Decided(nn.Sequential):
    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image).argmax(dim=1)


@pytest.mark.parametrize(
    ("given_network", "reason"),
    [
        (nn.Flatten(), "it has no weights"),
        (_OneAtATime(), "it does not run on two samples at once: RuntimeError"),
        (_Decided(*network()), "no gradient reaches its weights from a floating output"),
        (nn.Sequential(network(), nn.Flatten(0)), r"output 0 has the shape (8,) for two samples"),
    ],
    ids=["no weights", "one at a time", "decided", "no batch"],
)
def test_what_cannot_be_trained_is_neither_offered_nor_tried(
    given_network: nn.Module, reason: str
) -> None:
    given_workload = replace(workload(), network=given_network.eval())
    assert options(given_workload) == []
    with pytest.raises(MethodFailed, match=f"distill cannot train it: {re.escape(reason)}"):
        trained(given_workload.network, given_workload)


def test_other_parts_are_refused() -> None:
    layer = Part("0", PartKind.LAYER)
    with pytest.raises(MethodFailed, match="^0: distill trains whole networks"):
        Distill().apply(network(), {layer: Choice("distill", "1 steps, seed 0")}, workload())
    with pytest.raises(MethodFailed, match="without an option"):
        Distill().apply(network(), {}, workload())


def test_a_score_sees_the_structure_that_the_network_returns() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, image: Tensor) -> dict[str, Tensor]:
            found = self.inner(image)
            return {"later": found, "earlier": -found}

    opposite: list[bool] = []

    def score(outputs: dict[str, np.ndarray], labels: None) -> float:
        opposite.append(np.array_equal(outputs["later"], -outputs["earlier"]))
        return 0.0

    named = replace(workload(), network=Named().eval(), score=score)
    trained(named.network, named)
    assert set(opposite) == {True}


def test_a_score_that_fails_says_why() -> None:
    broken = replace(workload(), score=failing(ValueError("only one class")))
    with pytest.raises(MethodFailed, match="failed at .*: ValueError: only one class"):
        trained(network(), broken)
    undefined = replace(workload(), score=lambda outputs, labels: float("nan"))
    with pytest.raises(MethodFailed, match=r"score function at .*test_distill.py:\d+ returned nan"):
        trained(network(), undefined)


def test_a_loss_that_is_no_number_is_named_by_its_step() -> None:
    student = copy.deepcopy(network())
    with torch.no_grad():
        student[0].weight[0, 0, 0, 0] = float("nan")
    scored = replace(workload(), score=lambda outputs, labels: 1.0)
    with pytest.raises(MethodFailed, match="at step 0 of distillation the loss is nan"):
        trained(student, scored)


@pytest.mark.parametrize("option", ["100 steps, seed 0", "100 steps, qat int8, seed 0"])
def test_a_step_takes_time_and_changes_nothing(option: str) -> None:
    given_workload = workload()
    before = states(given_workload.network)
    assert 0 < seconds_per_step(given_workload.network, given_workload, option) < 10
    assert_same(given_workload.network, before)
