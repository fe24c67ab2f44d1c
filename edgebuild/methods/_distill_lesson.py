"""What a student is asked at each step, what the teacher says to it, and the loss."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgebuild.cache import digest
from edgebuild.methods._batch_norm_repair import FEWEST_FOR_STATISTICS
from edgebuild.methods._distill_data import Rows, batch_numbers, seeded, varied
from edgebuild.methods._distill_loss import (
    Output,
    Reading,
    feature_distance,
    leaves,
    read_output,
    shared_features,
    spread,
    watching,
)
from edgebuild.methods._distill_memory import BYTES_OF_ANSWERS, Memory, memory_of
from edgebuild.methods._distill_plan import Plan, Settings

Tensors = tuple[Tensor, ...]
# How many rows show what the outputs and features are, and how many are computed at once.
SHOWN = 64
ROWS_AT_ONCE = 64
# How many rows show what networks compute, and what they have in common.
FEW = 2
# The intermediate layers that are compared.
MOST_FEATURES = 6
# Features must be asked of the teacher at every step. A student that computes less than this share
# of what the teacher does learns more from the several steps that it could do meanwhile.
FEATURES_FROM = 0.5
# Variations are drawn for so many steps. A student that met eight thousand of them three times was
# as good as one that met others at every step, and a third sooner trained.
DRAWINGS = 256
# A row forward and backward takes as much as so many forward.
TRAINED = 3


@dataclass(frozen=True)
class Lesson:
    """A batch for every step, with the teacher's answers; the same step is always the same.

    Attributes:
        teacher: in eval mode, in the layout.
        rows: the calibration split.
        plan: how many steps, from which seed.
        settings: of the batches and the loss.
        layout: the memory format that both networks and all images are in.
        outputs: what each output of the teacher is.
        labeled: the position of the output that the labels are the classes of.
        features: the layers that are compared, and how much each varies.
        batch_size: rows a step.
        varied_rows: how many of these are varied.
        known: the teacher's answers to all rows; empty where it is asked for a batch at a time.
        memory: what it has said to batches before; none where it is asked at every step.
    """

    teacher: nn.Module
    rows: Rows
    plan: Plan
    settings: Settings
    layout: torch.memory_format
    outputs: tuple[Output, ...]
    labeled: int | None
    features: Mapping[str, float]
    batch_size: int
    varied_rows: int
    known: Sequence[Tensor] = ()
    memory: Memory | None = None

    @property
    def drawings(self) -> int:
        """After so many steps the same variations come again, to which the answers are known."""
        passes = max(self.settings.most_passes, 1)
        return max(DRAWINGS, math.ceil(self.plan.steps / passes))

    @property
    def plain_rows(self) -> int:
        """The rows of a batch that are not varied; they come first."""
        return self.batch_size - self.varied_rows

    def loss(self, student: nn.Module, step: int) -> Tensor:
        """How far the student is from the teacher, and from the labels, on the step's batch."""
        numbers, inputs = self.batch(step)
        with watching(student, self.features) as got:
            answers = leaves(student(*inputs))
        with torch.no_grad(), watching(self.teacher, self.features) as wanted:
            taught = self._taught(step, numbers, inputs)
        settings = self.settings
        losses = [
            output.distance(answer, known, settings.temperature)
            for output, answer, known in zip(self.outputs, answers, taught, strict=True)
        ]
        loss = torch.stack(losses).mean()
        if self.labeled is not None:
            surprise = self._surprise(answers[self.labeled], numbers)
            loss = torch.lerp(loss, surprise, settings.label_weight)
        if self.features:
            distance = feature_distance(got, wanted, self.features)
            loss = loss + settings.feature_weight * distance
        return loss

    def batch(self, step: int) -> tuple[np.ndarray, Tensors]:
        """The numbers of a step's plain rows and of others, and the inputs; the last are varied."""
        numbers = self._numbers(step)
        inputs = self.rows.take(numbers)
        if self.varied_rows:
            plain, drawn = self.plain_rows, self._drawn(step)
            others = inputs if drawn == step else self.rows.take(self._numbers(drawn))
            changed = varied(others, seeded(self.plan.seed, 1, drawn))
            inputs = tuple(
                torch.cat((tensor[:plain], other[plain:]))
                for tensor, other in zip(inputs, changed, strict=True)
            )
        return numbers, laid_out(inputs, self.layout)

    def plain_inputs(self, step: int) -> Tensors:
        """The inputs of a step's rows, none of them varied."""
        return laid_out(self.rows.take(self._numbers(step)), self.layout)

    def _drawn(self, step: int) -> int:
        """The step that a step's variations were drawn for."""
        return step % self.drawings

    def _numbers(self, step: int) -> np.ndarray:
        return batch_numbers(step, self.batch_size, len(self.rows), self.plan.seed)

    def _taught(self, step: int, numbers: np.ndarray, inputs: Tensors) -> Sequence[Tensor]:
        if self.memory is None:
            return leaves(self.teacher(*inputs))
        plain, known = self.plain_rows, self.known
        said = (
            [answers[torch.from_numpy(numbers[:plain])] for answers in known]
            if known
            else self._said(step, tuple(tensor[:plain] for tensor in inputs), is_varied=False)
        )
        if not self.varied_rows:
            return said
        # Apart from the plain ones, so that longer trainings, which know these, find them too.
        others = self._said(
            self._drawn(step), tuple(tensor[plain:] for tensor in inputs), is_varied=True
        )
        return [torch.cat(both) for both in zip(said, others, strict=True)]

    def _said(self, step: int, inputs: Tensors, is_varied: bool) -> Sequence[Tensor]:
        assert self.memory is not None
        question = self.plan.seed, step, self.batch_size, self.varied_rows, is_varied
        return self.memory.answers(question, lambda: leaves(self.teacher(*inputs)))

    def _surprise(self, answer: Tensor, numbers: np.ndarray) -> Tensor:
        assert self.labeled is not None
        assert self.rows.labels is not None
        plain = self.plain_rows
        class_ids = torch.from_numpy(self.rows.labels[numbers[:plain]].astype(np.int64)).flatten()
        return self.outputs[self.labeled].surprise(answer[:plain], class_ids)


def open_lesson(
    teacher: nn.Module, student: nn.Module, rows: Rows, plan: Plan, settings: Settings
) -> Lesson:
    """Looks at the teacher's answers to some rows; both networks are brought to one layout."""
    shown = rows.take(rows.evenly(SHOWN))
    layout = common_layout((teacher, student), shown)
    for network in (teacher, student):
        lay_out(network, layout)
    shown = laid_out(shown, layout)
    few = tuple(tensor[:FEW] for tensor in shown)
    work = _work(student, few), _work(teacher, few)
    compares = settings.feature_weight > 0 and 0 < FEATURES_FROM * work[1] <= work[0]
    names = shared_features(teacher, student, few, MOST_FEATURES) if compares else []
    with torch.no_grad(), watching(teacher, names) as seen:
        answers = tuple(leaves(teacher(*shown)))
    outputs = tuple(read_output(answer, rows.has_class_ids) for answer in answers)
    features = {name: spread(seen[name]) for name in names}
    size, varied_rows = _batch(rows, work, plan, settings)
    is_labeled = settings.label_weight > 0 and rows.has_class_ids and varied_rows < size
    labeled = _labeled(rows, answers, outputs, settings) if is_labeled else None
    return Lesson(
        teacher, rows, plan, settings, layout, outputs, labeled, features, size, varied_rows
    )


def _work(network: nn.Module, inputs: Tensors) -> float:
    """The floating-point operations of one row forward."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*inputs)
    return float(counter.get_total_flops()) / len(inputs[0])


def _batch(
    rows: Rows, work: tuple[float, float], plan: Plan, settings: Settings
) -> tuple[int, int]:
    """How many rows a batch has, and how many of them are varied.

    A step of networks that are light, in operations of student and teacher, has room for as many
    images again, varied ones; one of heavy networks has fewer. Other images are varied where they
    would be repeated so often that the student learns them by heart. Without variations, a batch
    that is larger than the split would hold rows twice.
    """
    size = settings.batch_size
    if not rows.are_images:
        return min(size, len(rows)), 0
    student, teacher = work
    if size * (2 * TRAINED * student + teacher) <= settings.light_step:
        return 2 * size, size
    # As if the student were the whole network: a smaller one takes more steps in the same time.
    affordable = int(settings.heavy_step / max((TRAINED + 1) * teacher, 1.0))
    size = min(size, max(affordable, FEWEST_FOR_STATISTICS))
    if plan.steps * size > settings.most_passes * len(rows):
        return size, size // 2
    return min(size, len(rows)), 0


def with_memory(lesson: Lesson, owner: nn.Module) -> Lesson:
    """Asks the teacher nothing twice, and about all rows at once where that is less work.

    The answers are remembered for as long as the owner lives, of whom the teacher is a copy.
    """
    rows, layout = lesson.rows, lesson.layout
    if lesson.features:
        return lesson
    shown = digest(rows.digest, str(layout), state_digest(lesson.teacher))
    memory = memory_of(owner, shown)
    asked = replace(lesson, memory=memory)
    if lesson.plan.steps * lesson.plain_rows < len(rows):
        return asked
    if not memory.rows:
        some = answers_of(lesson.teacher, rows, rows.evenly(SHOWN), layout)
        if sum(answer.nbytes for answer in some) / len(some[0]) * len(rows) > BYTES_OF_ANSWERS:
            return asked
        memory.rows = answers_of(lesson.teacher, rows, np.arange(len(rows)), layout)
    return replace(asked, known=memory.rows)


def _labeled(
    rows: Rows, answers: Sequence[Tensor], outputs: Sequence[Output], settings: Settings
) -> int | None:
    """The one output that the labels are the classes of.

    The teacher knows these better than who always says the most frequent one: labels that are
    numbered otherwise than its classes would teach nonsense. Without a teacher they are believed.
    """
    assert rows.labels is not None
    labels = rows.labels.flatten()[rows.evenly(SHOWN)]
    most = int(rows.labels.max())
    is_alone = settings.label_weight == 1
    counts = np.unique(labels, return_counts=True)[1]
    guessed = -1.0 if is_alone else counts.max() / len(labels)
    able = [
        number
        for number, (answer, output) in enumerate(zip(answers, outputs, strict=True))
        if output.reading is not Reading.VALUES and answer.shape[1] > most
        if np.mean(answer.argmax(dim=1).numpy() == labels) > guessed
    ]
    return able[0] if len(able) == 1 else None


def common_layout(networks: Sequence[nn.Module], inputs: Tensors) -> torch.memory_format:
    """Channels last, where convolutions on a CPU are faster, if all networks bear it.

    One that takes a `view` of a feature map does not, and says so. One that would hang does not.
    """
    modules = [module for one in networks for module in one.modules()]
    convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]
    if not convolutions or any(map(_would_hang, convolutions)):
        return torch.contiguous_format
    try:
        for network in networks:
            trial = lay_out(copy.deepcopy(network), torch.channels_last)
            some = tuple(tensor[:FEW] for tensor in laid_out(inputs, torch.channels_last))
            with torch.no_grad():
                trial(*some)
    except RuntimeError:
        return torch.contiguous_format
    return torch.channels_last


def _would_hang(layer: nn.Conv2d) -> bool:
    """Whether torch 2.13 may never come back from its gradient, channels last.

    Of strided kernels of one pixel over channels that are no multiple of eight, oneDNN's AVX2 code
    overwrites the barrier that its threads wait at.
    """
    is_strided_pixel = layer.kernel_size == (1, 1) and max(layer.stride) > 1
    return is_strided_pixel and layer.in_channels % 8 != 0


def lay_out(network: nn.Module, layout: torch.memory_format) -> nn.Module:
    """Brings the weights of convolutions into a memory format, in place."""
    network.to(memory_format=layout)  # type: ignore[call-overload]
    return network


def laid_out(inputs: Tensors, layout: torch.memory_format) -> Tensors:
    return tuple(
        tensor.contiguous(memory_format=layout) if tensor.ndim == 4 else tensor for tensor in inputs
    )


def answers_of(
    network: nn.Module, rows: Rows, numbers: np.ndarray, layout: torch.memory_format
) -> Tensors:
    """A network's floating outputs for rows, joined along the batch."""
    parts = [leaves(outputs) for outputs in run(network, rows, numbers, layout)]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


@torch.no_grad()
def run(
    network: nn.Module, rows: Rows, numbers: np.ndarray, layout: torch.memory_format
) -> Iterator[Any]:
    """A network's outputs for rows as it returns them, some rows at once."""
    for some in np.array_split(numbers, math.ceil(len(numbers) / ROWS_AT_ONCE)):
        yield network(*laid_out(rows.take(some), layout))


def state_digest(network: nn.Module) -> str:
    """Names all weights and statistics by their content."""
    name = hashlib.sha256()
    for key, value in network.state_dict().items():
        if isinstance(value, Tensor):
            name.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
            name.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return name.hexdigest()
