"""Trains what is left of a network to answer as the whole network did."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from edgebuild.cache import digest
from edgebuild.methods._batch_norms import fold_batch_norms
from edgebuild.methods._distill_data import open_rows
from edgebuild.methods._distill_judge import Judge, open_judge
from edgebuild.methods._distill_lesson import (
    Lesson,
    answers_of,
    lay_out,
    open_lesson,
    state_digest,
    with_memory,
)
from edgebuild.methods._distill_loss import leaves
from edgebuild.methods._distill_plan import Grid, Plan, Settings
from edgebuild.methods._distill_train import LATEST_BATCHES, Training, seconds_of, train
from edgebuild.methods._fake_quantization import fake_quantize, leave_rounded
from edgebuild.methods._kept_memory import kept_memory
from edgebuild.vocabulary.contracts import WORKPLACE, Stage, Workplace
from edgebuild.vocabulary.errors import MethodFailed, told
from edgebuild.vocabulary.offer import NETWORK, Choice, Offer, Part
from edgebuild.vocabulary.precision import LayerKind, Precision
from edgebuild.vocabulary.target import RuntimeFacts
from edgebuild.vocabulary.units import Seconds
from edgebuild.vocabulary.workload import Split, Workload

# Trainings are offered for so many passes over the calibration split, but of a pass that is
# neither so short that nothing is learned nor so long that nobody waits for it.
PASSES = (1, 3, 10)
SHORTEST_PASS, LONGEST_PASS = 30, 500
PASSES_QUANTIZED = 3
# The precisions whose weights lie on each grid, and the layers that are trained on it.
PRECISIONS = {
    Grid.INT8: {Precision.INT8_STATIC, Precision.INT8_DYNAMIC},
    Grid.INT4: {Precision.INT4_WEIGHTS},
}
# Rows of the validation split that tell how long a look at all of them takes.
LOOKED_AT = 64
# A step that takes longer, in seconds, is timed once: too much of the time would go into timing. It
# is the first, which fetches memory too, and so takes longer than those that come after it.
LONG_STEP = 2.0
KINDS = (LayerKind.CONVOLUTION, LayerKind.DEPTHWISE, LayerKind.TRANSPOSED, LayerKind.LINEAR)


@dataclass(frozen=True)
class Distill(Settings):
    """Recovery after pruning, factorizing or rounding, with the workload's network as teacher.

    Hinton et al., arXiv 1503.02531. The teacher answers to the calibration split, so that it
    needs no labels; where there are some, they are half of the lesson. With a grid, the student
    is quantized while it trains (Jacob et al., arXiv 1712.05877), and ends with weights on the grid
    and without BatchNorm. A network that was changed learns in float for three quarters of the
    steps before.
    """

    stage: ClassVar[Stage] = Stage.RECOVER

    def offers(self, workload: Workload, runtime: RuntimeFacts) -> Iterator[Offer]:
        """A ladder of lengths, and quantization-aware trainings for the runtime's kernels.

        None for a network that cannot be trained.
        """
        if _refusal(workload.network, workload.example):
            return
        steps = math.ceil(_count(workload.calibration) / self.batch_size)
        one_pass = min(max(steps, SHORTEST_PASS), LONGEST_PASS)
        plans = [Plan(passes * one_pass) for passes in PASSES]
        known = {one for kind in KINDS for one in runtime.kernels.get(kind, ())}
        plans += [
            Plan(PASSES_QUANTIZED * one_pass, grid)
            for grid, precisions in PRECISIONS.items()
            if precisions & known
        ]
        for plan in plans:
            yield Offer(NETWORK, Choice("distill", str(plan)))

    def declined(self, workload: Workload, runtime: RuntimeFacts) -> Mapping[str, str]:
        reason = _refusal(workload.network, workload.example)
        return {"": f"it cannot be trained: {reason}"} if reason else {}

    def apply(
        self,
        network: nn.Module,
        chosen: Mapping[Part, Choice],
        workload: Workload,
        workplace: Workplace = WORKPLACE,
    ) -> nn.Module:
        """A trained copy of the network, or an untrained one where training found no better.

        With a scratch folder, a run that was killed goes on from its latest look at the
        validation split, and gives the same network, to the bit.

        Raises:
            MethodFailed: another part than the whole network, an unreadable option, a network
                that cannot be trained, a loss or a score that is no number.
        """
        plan = _plan(chosen)
        if plan.grid is not None and state_digest(network) != state_digest(workload.network):
            # On a grid, without BatchNorm, what has much to learn would learn slowly.
            first, plan = plan.parted()
            network = self._trained(network, workload, first, workplace)
        return self._trained(network, workload, plan, workplace)

    def _trained(
        self, network: nn.Module, workload: Workload, plan: Plan, workplace: Workplace
    ) -> nn.Module:
        with self.training(network, workload, plan) as training:
            checkpoint = None
            if workplace.scratch is not None:
                workplace.scratch.mkdir(parents=True, exist_ok=True)
                name = self._name(network, workload.network, training)
                checkpoint = workplace.scratch / f"distill-{name}.pt"
            training.lesson = with_memory(training.lesson, workload.network)
            train(training, workplace.progress, checkpoint)
        leave_rounded(training.student)
        return lay_out(training.student, torch.contiguous_format)

    @contextmanager
    def training(
        self, network: nn.Module, workload: Workload, plan: Plan
    ) -> Iterator[Training[Lesson, Judge]]:
        """Everything ready to train a copy of the network."""
        student = copy.deepcopy(network).eval()
        teacher = copy.deepcopy(workload.network).eval().requires_grad_(False)
        for one in (student, workload.network):
            if refusal := _refusal(one, workload.example):
                raise MethodFailed(f"the network: distill cannot train it: {refusal}")
        if plan.grid is not None:
            # The teacher too: else layers of one name would not compute the same.
            for one in (student, teacher):
                fold_batch_norms(one, workload.example)
            fake_quantize(student, plan.grid.steps)
        with (
            kept_memory(),
            open_rows(workload.calibration, workload.example, "calibration") as rows,
            open_rows(workload.validation, workload.example, "validation") as held_out,
        ):
            lesson = open_lesson(teacher, student, rows, plan, self)
            yield Training(student, lesson, open_judge(held_out, lesson, workload.score))

    def _name(
        self, network: nn.Module, teacher: nn.Module, training: Training[Lesson, Judge]
    ) -> str:
        """Names all that the result follows from, so that no run goes on from another's."""
        lesson, judge = training.lesson, training.judge
        states = [state_digest(network), state_digest(teacher)]
        splits = [lesson.rows.digest, judge.rows.digest]
        return digest(str(lesson.plan), asdict(self), states, splits)[:16]


def seconds_per_step(
    network: nn.Module, workload: Workload, option: str, settings: Distill | None = None
) -> Seconds:
    """How long one step of a choice takes here, its part of the looks at validation included.

    Two steps are timed, or a single long one, and a look at some rows of the validation split. The
    teacher is asked in each step, so that it is an upper bound where `apply` asks it about all
    samples beforehand.

    Raises:
        MethodFailed: as `Distill.apply`.
    """
    settings = settings or Distill()
    plan = Plan.parse(option)
    with (
        torch.random.fork_rng(devices=[]),
        settings.training(network, workload, plan) as training,
    ):
        if plan.grid is not None:
            training.begin()
        step = seconds_of(training.learn)
        if step < LONG_STEP:
            # The first step allocates memory.
            step = (seconds_of(training.learn) + seconds_of(training.learn)) / 2
        judge = training.judge
        some = judge.numbers[:LOOKED_AT]
        few = seconds_of(
            lambda: answers_of(training.student, judge.rows, some, judge.lesson.layout)
        )
        look = few * len(judge.numbers) / len(some)
        looks = 1 + plan.steps / training.steps_between_looks
        look += seconds_of(lambda: training.follow_anew(range(LATEST_BATCHES)))
    return Seconds(step + look * looks / plan.steps)


def _plan(chosen: Mapping[Part, Choice]) -> Plan:
    for part, choice in chosen.items():
        if part != NETWORK or choice.method != "distill":
            where = part.path or "the network"
            raise MethodFailed(f"{where}: distill trains whole networks, not {choice.option!r}")
    if NETWORK not in chosen:
        raise MethodFailed("the network: distill was chosen without an option")
    return Plan.parse(chosen[NETWORK].option)


def _refusal(network: nn.Module, example: tuple[Tensor, ...]) -> str:
    """Why a network cannot be trained in batches; empty where it can."""
    trial = copy.deepcopy(network).eval().requires_grad_(True)
    if not any(weight.is_floating_point() for weight in trial.parameters()):
        return "it has no weights"
    try:
        outputs = leaves(trial(*(torch.cat((tensor, tensor)) for tensor in example)))
    except Exception as error:
        # Whatever the user's own code raises for a batch.
        return f"it does not run on two samples at once: {told(error)}"
    if not any(output.requires_grad for output in outputs):
        return "no gradient reaches its weights from a floating output"
    for number, output in enumerate(outputs):
        if output.ndim == 0 or len(output) != 2:
            return f"output {number} has the shape {tuple(output.shape)} for two samples"
    return ""


def _count(split: Split) -> int:
    """How many rows a split has, if all its samples have as many as the first one."""
    samples = cast(Any, split)
    inputs, _ = next(iter(samples))
    first = inputs[0] if isinstance(inputs, tuple | list) else inputs
    number = len(samples) if hasattr(samples, "__len__") else sum(1 for _ in samples)
    return int(number * len(first))
