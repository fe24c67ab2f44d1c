"""Scores a student on the validation split: by the workload's score, or against the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgebuild.methods._distill_data import Rows
from edgebuild.methods._distill_lesson import Lesson, answers_of, run
from edgebuild.vocabulary.errors import InvalidWorkload, MethodFailed
from edgebuild.vocabulary.scoring import scored
from edgebuild.vocabulary.workload import Score

# How many rows tell how far a student is from the teacher.
MOST_ROWS = 512


@dataclass(frozen=True)
class Judge:
    """The rows that a student is scored on, and the teacher's answers where there is no score."""

    rows: Rows
    numbers: np.ndarray
    lesson: Lesson
    score: Score | None
    taught: Sequence[Tensor]

    @property
    def goal(self) -> float:
        return self(self.lesson.teacher) if self.score else 0.0

    def __call__(self, student: nn.Module) -> float:
        """Higher is better. Without a score: minus the distance from the teacher's outputs.

        Raises:
            MethodFailed: the score function fails, or gives no number.
        """
        if self.score is None:
            answers = answers_of(student, self.rows, self.numbers, self.lesson.layout)
            pairs = zip(self.lesson.outputs, answers, self.taught, strict=True)
            return -float(sum(output.distance(answer, known) for output, answer, known in pairs))
        labels = None if self.rows.labels is None else self.rows.labels[self.numbers]
        outputs = _joined(list(run(student, self.rows, self.numbers, self.lesson.layout)))
        try:
            return scored(self.score, outputs, labels)
        except InvalidWorkload as error:
            raise MethodFailed(f"a student of the network: {error}") from error


def open_judge(rows: Rows, lesson: Lesson, score: Score | None) -> Judge:
    """All rows where there is a score, which may be of a whole split only; else at most 512."""
    numbers = rows.evenly(len(rows) if score else MOST_ROWS)
    taught = () if score else answers_of(lesson.teacher, rows, numbers, lesson.layout)
    return Judge(rows, numbers, lesson, score, taught)


def _joined(batches: list[Any]) -> Any:
    """Outputs as the score expects them: the network's own structure of arrays."""
    columns = zip(*map(pytree.tree_leaves, batches), strict=True)
    return pytree.tree_unflatten(
        [_column(column) for column in columns], pytree.tree_structure(batches[0])
    )


def _column(parts: tuple[Any, ...]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(parts).numpy()
    return parts[0]
