"""Trains a student by a lesson, keeps its best state, and goes on where a killed run was."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Generic, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from edgebuild.methods._batch_norm_repair import (
    FEWEST_FOR_STATISTICS,
    batch_norms,
    former_momenta,
    from_the_first,
)
from edgebuild.methods._distill_data import seeded
from edgebuild.methods._distill_plan import Plan, Settings
from edgebuild.methods._fake_quantization import RoundedInput
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.errors import MethodFailed

# The share of the steps that the learning rate takes to rise, and what is left of it at the end.
RISING = 0.05
LAST_RATE = 0.01
# The share of the steps after which statistics and ranges stay as they are.
SETTLED = 0.8
# Batches that show the ranges of activations before the first step, that the statistics are taken
# of at every look, and at most so many after the last step.
FIRST_BATCHES, LATEST_BATCHES, LAST_BATCHES = 4, 4, 32
WEIGHT_DECAY = 1e-4
# A network without BatchNorm bears this share of the learning rate.
RATE_WITHOUT_NORM = 0.1
# A score that falls this far below the starting state's says that the learning rate ruins it: then
# the best state is taken up again, with so much less.
RUINED, LOWER_RATE = 0.01, 1 / 8
# Between these shares of the steps a training is given up that has not come halfway to what the
# teacher scores, and by the end would not come near it if it went so many times as fast.
DOUBTED, FASTER, HALFWAY, NEAR = (0.25, 0.5), 2.0, 0.5, 0.9

State = dict[str, Tensor]


class Teaching(Protocol):
    """What a student is asked at each step, and how far from the teacher its answer is."""

    @property
    def plan(self) -> Plan: ...

    @property
    def settings(self) -> Settings: ...

    @property
    def batch_size(self) -> int: ...

    def plain_inputs(self, step: int) -> tuple[Tensor, ...]:
        """The inputs of a step's rows as a network meets them in use."""
        ...

    def loss(self, student: nn.Module, step: int) -> Tensor: ...


class Judging(Protocol):
    """Scores a student on the rows of these numbers; higher is better."""

    @property
    def numbers(self) -> np.ndarray: ...

    @property
    def goal(self) -> float:
        """What the teacher scores; 0 where the score is how far a student is from it."""
        ...

    def __call__(self, student: nn.Module) -> float: ...


TeachingT = TypeVar("TeachingT", bound=Teaching)
JudgingT = TypeVar("JudgingT", bound=Judging)


def train(
    training: Training[TeachingT, JudgingT], progress: Progress, checkpoint: Path | None
) -> None:
    """Trains the student in place until it is in its best state, in eval mode.

    The best is the latest of the states with the highest score, the starting state among them.
    With a checkpoint the result is the same, to the bit, however often the run was killed.

    Raises:
        MethodFailed: the loss is no number any more.
    """
    total = training.lesson.plan.steps
    # Networks that draw at random although they are in eval mode must not disturb the caller.
    with torch.random.fork_rng(devices=[]), progress.step("Distilling", total=total) as bar:
        if checkpoint is not None and checkpoint.exists():
            training.restore(checkpoint)
        else:
            training.begin()
        for _ in range(training.step):
            bar.advance(training.note)
        while training.step < total and not training.is_hopeless:
            training.learn()
            if training.is_time_to_look:
                training.look()
                if training.is_ruined:
                    training.rewind()
                if checkpoint is not None:
                    training.store(checkpoint)
            bar.advance(training.note)
        if not training.is_hopeless:
            training.finish()
    training.student.load_state_dict(training.best)


class Training(Generic[TeachingT, JudgingT]):
    """A student on its way: all that a checkpoint holds."""

    def __init__(self, student: nn.Module, lesson: TeachingT, judge: JudgingT) -> None:
        self.student, self.lesson, self.judge = student, lesson, judge
        self.optimizer = optimizer_for(student, lesson.settings)
        self.highest_rate = self.optimizer.param_groups[0]["lr"]
        self.step = 0
        self.score = self.best_score = self.first_score = -math.inf
        self.best: State = {}
        self.waited = 0

    @property
    def is_hopeless(self) -> bool:
        return self.waited >= self.lesson.settings.patience or self.leads_nowhere

    @property
    def leads_nowhere(self) -> bool:
        """Whether there is no prospect of the teacher's score, as far as that can be told."""
        total, (begun, late) = self.lesson.plan.steps, DOUBTED
        if not self.is_time_to_look or not begun <= self.step / total <= late:
            return False
        if self.goal <= 0 or self.best_score >= HALFWAY * self.goal:
            return False
        pace = (self.best_score - self.first_score) / self.step
        return self.best_score + FASTER * pace * (total - self.step) < NEAR * self.goal

    @cached_property
    def goal(self) -> float:
        return self.judge.goal

    @property
    def is_ruined(self) -> bool:
        """Whether what the last steps came to scores less than what training began with."""
        return self.score < self.first_score - RUINED

    @property
    def is_time_to_look(self) -> bool:
        return self.step % self.steps_between_looks == 0 or self.step == self.lesson.plan.steps

    @property
    def steps_between_looks(self) -> int:
        settings, rows = self.lesson.settings, len(self.judge.numbers)
        return settings.steps_between_looks(self.lesson.plan.steps, rows)

    @property
    def note(self) -> str:
        return f"score {self.score:.4g}, best {self.best_score:.4g}"

    def begin(self) -> None:
        """Shows the ranges of activations to what rounds them, and scores the starting state."""
        _let_follow(self.student, RoundedInput)
        with torch.no_grad():
            for step in range(FIRST_BATCHES):
                self.student(*self.lesson.plain_inputs(step))
        self.look()
        self.first_score = self.score

    def learn(self) -> None:
        """One step of the optimizer."""
        plan, step = self.lesson.plan, self.step
        torch.manual_seed(seeded(plan.seed, 2, step).initial_seed())
        _let_follow(self.student, *self._followers())
        for group in self.optimizer.param_groups:
            group["lr"] = self.highest_rate * rate_at(step, plan.steps)
        self.optimizer.zero_grad()
        with _quick_to_follow(self.student, step):
            loss = self.lesson.loss(self.student, step)
        if not torch.isfinite(loss):
            raise MethodFailed(
                f"the network: at step {step} of distillation the loss is {loss.item()}: "
                "try a lower learning_rate"
            )
        self.descend(loss)
        self.step += 1

    def finish(self) -> None:
        """Scores the student once more, with statistics of many batches at once."""
        if batch_norms(self.student) and self.lesson.batch_size >= FEWEST_FOR_STATISTICS:
            self.follow_anew(range(min(LAST_BATCHES, self.lesson.plan.steps)))
            self._compare()

    def follow_anew(self, steps: range) -> None:
        """Takes the statistics of the batches of these steps, where there are any.

        Those that followed the batches are of the last few of these, of weights that have moved
        since, and of variations (Wu and Johnson, Rethinking "Batch" in BatchNorm, arXiv
        2105.07576).
        """
        norms = batch_norms(self.student)
        if not norms:
            return
        _let_follow(self.student, BatchNorm)
        with from_the_first(norms), torch.no_grad():
            for step in steps:
                torch.manual_seed(seeded(self.lesson.plan.seed, 3, step).initial_seed())
                self.student(*self.lesson.plain_inputs(step))

    def descend(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def _followers(self) -> tuple[type[nn.Module], ...]:
        """What follows the batches: ranges, and statistics where a batch is large enough."""
        if self.step >= SETTLED * self.lesson.plan.steps:
            return ()
        is_large = self.lesson.batch_size >= FEWEST_FOR_STATISTICS
        return (RoundedInput, BatchNorm) if is_large else (RoundedInput,)

    def look(self) -> None:
        """Scores the student; it is the best yet unless an earlier state scored higher.

        Of equal scores the later is the best: what was trained for longer is nearer to the
        teacher. It is no reason to wait for longer.
        """
        if self.step and BatchNorm in self._followers():
            self.follow_anew(range(max(self.step - LATEST_BATCHES, 0), self.step))
        self._compare()

    def _compare(self) -> None:
        self.student.eval()
        self.score = self.judge(self.student)
        self.waited = 0 if self.score > self.best_score else self.waited + 1
        if self.score >= self.best_score:
            self.best_score, self.best = self.score, copy.deepcopy(self.student.state_dict())

    def rewind(self) -> None:
        """Takes up the best state again, to go on with a lower learning rate."""
        self.student.load_state_dict(self.best)
        self.optimizer.state.clear()
        self.highest_rate *= LOWER_RATE

    def store(self, path: Path) -> None:
        """Writes beside the file, then renames: a kill leaves the old one or the new one."""
        partial = path.with_suffix(".part")
        held = {
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "numbers": [self.step, self.waited],
            "scores": [self.score, self.best_score, self.first_score],
            "rate": self.highest_rate,
        }
        torch.save(held, partial)
        os.replace(partial, path)

    def restore(self, path: Path) -> None:
        held = torch.load(path, map_location="cpu", weights_only=True)
        self.student.load_state_dict(held["student"])
        self.optimizer.load_state_dict(held["optimizer"])
        self.best = held["best"]
        self.step, self.waited = held["numbers"]
        self.score, self.best_score, self.first_score = held["scores"]
        self.highest_rate = held["rate"]


def _let_follow(network: nn.Module, *kinds: type[nn.Module]) -> None:
    """Puts these kinds of modules into training mode, and everything else into eval mode.

    Dropout has no place in a short recovery, and some networks return other outputs in training.
    """
    network.eval()
    for module in network.modules():
        if kinds and isinstance(module, kinds):
            module.train()


@contextmanager
def _quick_to_follow(network: nn.Module, step: int) -> Iterator[None]:
    """Lets statistics be the average of the first batches: those of the whole network fit no more.

    Of thirty steps the usual momentum of 0.1 would leave a trace of them to the end.
    """
    norms = [one for one in batch_norms(network) if one.momentum is not None]
    with former_momenta(norms):
        for norm in norms:
            norm.momentum = max(cast(float, norm.momentum), 1 / (step + 1))
        yield


def seconds_of(work: Callable[[], object]) -> float:
    """What some work takes, done once."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def rate_at(step: int, steps: int) -> float:
    """The share of the highest learning rate: a linear rise, then half a cosine down to 1 %."""
    rising = max(1, round(RISING * steps))
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * done))


def optimizer_for(student: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """AdamW over all weights, frozen ones too; weight decay on matrices and kernels alone."""
    weights = [weight for weight in student.parameters() if weight.is_floating_point()]
    for weight in weights:
        weight.requires_grad_(True)
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    rate = settings.learning_rate * (1.0 if batch_norms(student) else RATE_WITHOUT_NORM)
    return torch.optim.AdamW(groups, lr=rate)
