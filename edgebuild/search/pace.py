"""Measures how long a step of training takes here, and learns from how long trainings took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from edgebuild.methods.distill import seconds_per_step
from edgebuild.search.case import Case
from edgebuild.search.menu import Menu
from edgebuild.search.propose import work_of
from edgebuild.search.reshape import changed_once
from edgebuild.search.training import TEACHER, Training, teachers_share
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.errors import MethodFailed, told
from edgebuild.vocabulary.offer import Offer

# A training of usual length tells what a step takes, its share of the looks at validation included.
USUAL_STEPS = 200
# What took no longer than this, in seconds, was not trained but found.
FROM_CACHE = 1.0


def timed(
    training: Training, case: Case, students: Sequence[Offer], menu: Menu, progress: Progress
) -> Training:
    """The training with what a step takes; as it is where the network cannot be trained."""
    try:
        step = _seconds(case.lesson.network, case, training)
    except MethodFailed as error:
        progress.say(f"nothing is trained: {told(error)}")
        return training
    return replace(training, step=step, teacher=_teacher(step, training, case, students, menu))


def _teacher(
    step: float, training: Training, case: Case, students: Sequence[Offer], menu: Menu
) -> float:
    """The share of a step that is not the student's, by what one of a middling student takes.

    The teacher is asked as often, and light students are shown more at once.
    """
    if not students:
        return TEACHER
    middling = students[len(students) // 2]
    try:
        student = changed_once(case, middling.part, middling.choice)
        smaller = _seconds(student, case, training)
    except MethodFailed:
        # It is told when it is its turn.
        return TEACHER
    return teachers_share(step, smaller, work_of(menu, [middling]))


def _seconds(network: nn.Module, case: Case, training: Training) -> float:
    return seconds_per_step(network, case.lesson, training.choice(USUAL_STEPS).option)


@dataclass
class Pace:
    """How long trainings took, and how long they were thought to, in seconds."""

    trainings: list[tuple[float, float]] = field(default_factory=list)

    @property
    def factor(self) -> float:
        """By what factor they take longer than is thought; the first also asks the teacher."""
        later = self.trainings[1:]
        if not later:
            return 1.0
        return sum(taken for taken, _ in later) / sum(thought for _, thought in later)
