"""What is lost on other samples is bounded from how much blocks of these differ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgebuild import Workload
from edgebuild.cache import Cache
from edgebuild.capture import capture
from edgebuild.inputs.target_file import load_target
from edgebuild.search.accuracy import accuracy_of, ruin
from edgebuild.search.case import Case, open_case
from edgebuild.vocabulary.program import Program
from edgebuild.vocabulary.silence import Silence
from edgebuild.vocabulary.target import Budget

COUNT = 400


def share_right(outputs: Any, labels: Any) -> float:
    return float(np.mean(outputs.argmax(1) == labels))


def of_a_whole_split(outputs: Any, labels: Any) -> float:
    if len(outputs) < COUNT:
        raise ValueError("score the whole split")
    return share_right(outputs, labels)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A network that answers with its inputs, and is always right."""
    network = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.eye(2))
    samples = [(torch.eye(2)[number % 2][None], np.array(number % 2)) for number in range(COUNT)]
    workload = Workload(
        name="echo",
        network=network.eval(),
        example=(torch.zeros(1, 2),),
        calibration=samples[:8],
        validation=samples,
        test=samples[:16],
        score=share_right,
    )
    cache = Cache(Path(tmp_path_factory.mktemp("cache")))
    return open_case(workload, load_target("host"), Budget(), cache, Silence())


def outputs(wrong: np.ndarray) -> list[np.ndarray]:
    """The network's answers, the wrong ones turned around."""
    right = np.eye(2, dtype=np.float32)[np.arange(COUNT) % 2]
    return [np.where(wrong[:, None], right[:, ::-1], right)]


def test_an_artifact_that_answers_alike_loses_nothing(case: Case) -> None:
    found = accuracy_of(case, outputs(np.zeros(COUNT, bool)), case.validation)
    assert (found.score, found.lost, found.most_lost) == (1.0, 0.0, 0.0)


def test_that_none_was_lost_does_not_say_that_none_will_be(case: Case) -> None:
    """Answers that differ, and decide nothing here: by the rule of three."""
    far = [0.9 * each + 0.05 for each in outputs(np.zeros(COUNT, bool))]
    found = accuracy_of(case, far, case.validation)
    assert (found.score, found.lost) == (1.0, 0.0)
    assert found.most_lost == pytest.approx(3 / COUNT)
    few = [each[:16] for each in far]
    assert accuracy_of(case, few, case.test).most_lost == pytest.approx(3 / 16)
    near = [each * (1 + 1e-6) for each in outputs(np.zeros(COUNT, bool))]
    assert accuracy_of(case, near, case.validation).most_lost == 0.0


@pytest.mark.parametrize("size", [1e-4, 0.5, 30.0])
def test_what_an_error_loses_is_a_share_of_it(size: float, case: Case) -> None:
    """The same artifact, whatever the unit of the labels."""

    def negative_error(outputs: Any, labels: Any) -> float:
        return -size * float(np.mean((outputs[:, 0] - 3 - np.asarray(labels)) ** 2))

    other = replace(case, workload=replace(case.workload, score=negative_error))
    answers = [0.9 * each for each in outputs(np.zeros(COUNT, bool))]
    found = accuracy_of(other, answers, other.validation)
    # 2² and 4² on average, and 2.1² and 4² then.
    assert found.lost == pytest.approx((2.1**2 - 2**2) / (2**2 + 4**2), rel=1e-3)
    assert found.most_lost is not None
    assert found.most_lost == pytest.approx(found.lost, rel=0.1)


def test_the_bound_holds_for_the_true_loss_about_as_often_as_it_says(case: Case) -> None:
    rate, draws = 0.1, np.random.default_rng(0)
    found = [
        accuracy_of(case, outputs(draws.random(COUNT) < rate), case.validation) for _ in range(200)
    ]
    held = np.mean([rate <= one.most_lost for one in found if one.most_lost is not None])
    assert 0.90 <= held <= 0.99
    assert np.mean([one.lost for one in found]) == pytest.approx(rate, abs=0.01)


def test_errors_that_stand_together_tell_less(case: Case) -> None:
    spread, together = np.zeros(COUNT, bool), np.zeros(COUNT, bool)
    spread[::20], together[:20] = True, True
    far, near = (accuracy_of(case, outputs(wrong), case.validation) for wrong in (together, spread))
    assert far.lost == near.lost == pytest.approx(0.05)
    assert far.most_lost is not None
    assert near.most_lost is not None
    assert far.most_lost > 0.1 > near.most_lost


def test_one_sample_bounds_nothing(case: Case) -> None:
    workload = replace(case.workload, test=[next(iter(case.workload.test))])
    single = open_case(workload, load_target("host"), Budget(), case.cache, Silence())
    one = [each[:1] for each in outputs(np.zeros(COUNT, bool))]
    assert not accuracy_of(single, one, single.test).is_bounded
    assert accuracy_of(case, outputs(np.zeros(COUNT, bool)), case.validation).is_bounded


def test_a_score_of_the_whole_split_alone_bounds_nothing(case: Case) -> None:
    other = replace(case, workload=replace(case.workload, score=of_a_whole_split))
    found = accuracy_of(other, outputs(np.arange(COUNT) < 4), other.validation)
    assert found.lost == pytest.approx(0.01)
    assert found.most_lost is None


def test_without_a_score_it_is_the_agreement_that_is_lost(case: Case) -> None:
    other = replace(case, workload=replace(case.workload, score=None))
    found = accuracy_of(other, outputs(np.arange(COUNT) % 10 == 0), other.validation)
    assert found.lost == pytest.approx(0.1)
    assert found.most_lost == pytest.approx(0.1 + 3 / COUNT)


def turned(case: Case, share: float) -> Program:
    """A network that gives the other answer, blurred by this share of the right one."""
    network = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        network.weight.copy_(share * torch.eye(2) + (1 - share) * torch.eye(2).flip(0))
    return capture(network.eval(), case.workload.example)


def test_a_network_that_has_lost_most_of_its_score_is_seen_before_it_is_exported(
    case: Case,
) -> None:
    found = ruin(case, turned(case, 0.2))
    assert found is not None
    assert found.value == 1.0
    assert found.where == "PyTorch, before any export, on 64 validation samples"
    assert ruin(case, turned(case, 0.8)) is None


def test_what_does_not_count_from_zero_tells_of_no_ruin(case: Case) -> None:
    for score in (of_a_whole_split, lambda outputs, labels: share_right(outputs, labels) - 1.0):
        other = replace(case, workload=replace(case.workload, score=score))
        assert ruin(other, turned(case, 0.2)) is None
