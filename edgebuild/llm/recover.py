"""Teaches what is left of a decoder to expect what the whole one expects, token by token.

Forward KL on the logits of all tokens, as in Minitron (Muralidharan et al., arXiv 2407.14679). One
process, or as many as `accelerate launch` starts: each takes its part of every batch.
"""

from __future__ import annotations

import datetime
import functools
import importlib
import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from edgebuild.inputs.huggingface import without_progress_bars
from edgebuild.llm.corpus import Corpus
from edgebuild.llm.prune import Subject
from edgebuild.llm.sequences import Tokens
from edgebuild.methods._distill_data import batch_numbers
from edgebuild.methods._distill_loss import Output, Reading
from edgebuild.methods._distill_plan import Plan, Settings
from edgebuild.methods._distill_train import RATE_WITHOUT_NORM, Training, seconds_of, train
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.errors import (
    InputError,
    InvalidCheckpoint,
    InvalidQuantity,
    MissingPackage,
    first_line,
)

LOGITS = Output(Reading.LOGITS, 1.0)
# Longer gradients are cut to this.
LONGEST_GRADIENT = 1.0
# How long other processes wait while the first one prunes.
PATIENCE = datetime.timedelta(hours=12)
# Steps that tell how long one takes, and how many a training has at least.
TIMED_STEPS = 3
FEWEST_STEPS = 20
# The smallest rate that follows from a model's size.
LOWEST_RATE = 1e-5


@dataclass(frozen=True)
class Effort:
    """How long a student learns, and how.

    Attributes:
        steps: of the optimizer; 0 for none.
        minutes: instead: as many steps as fit.
        batch: stretches a step, of all processes together.
        learning_rate: its highest; by the student's size unless given.
        temperature: softens what both expect.
        label_weight: the share of the text itself in the loss: 1 is training without a teacher.
        seed: what batches are drawn from.

    Raises:
        InvalidQuantity: a temperature or a rate that is none.
    """

    steps: int = 1000
    minutes: float | None = None
    batch: int = 8
    learning_rate: float | None = None
    temperature: float = 1.0
    label_weight: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        named = {"temperature": self.temperature, "learning-rate": self.learning_rate}
        for name, value in named.items():
            if value is not None and not 0 < value < math.inf:
                raise InvalidQuantity(f"--{name} {value:g}: it must be above 0")


class Machine(Protocol):
    """What is used of accelerate's `Accelerator`, under its names."""

    @property
    def device(self) -> torch.device: ...
    @property
    def is_main_process(self) -> bool: ...
    @property
    def num_processes(self) -> int: ...
    @property
    def process_index(self) -> int: ...
    def prepare(self, *things: Any) -> Any: ...
    def backward(self, loss: Tensor) -> None: ...
    def clip_grad_norm_(self, parameters: Any, max_norm: float) -> Any: ...
    def reduce(self, tensor: Tensor, reduction: str) -> Any: ...
    def unwrap_model(self, model: Any) -> Any: ...
    def wait_for_everyone(self) -> None: ...


@dataclass(frozen=True)
class Alone:
    """One process without accelerate: on the graphics card, if there is one."""

    device: torch.device
    is_main_process: bool = True
    num_processes: int = 1
    process_index: int = 0

    def prepare(self, model: nn.Module, optimizer: Any) -> Any:
        return model.to(self.device), optimizer

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def clip_grad_norm_(self, parameters: Any, max_norm: float) -> Any:
        return nn.utils.clip_grad_norm_(parameters, max_norm)

    def reduce(self, tensor: Tensor, reduction: str) -> Any:
        return tensor

    def unwrap_model(self, model: Any) -> Any:
        return model

    def wait_for_everyone(self) -> None:
        pass


def open_machine(progress: Progress) -> Machine:
    """accelerate's, where it is installed; else this process alone."""
    if importlib.util.find_spec("accelerate") is None:
        cards = torch.cuda.device_count()
        if cards > 1:
            progress.say(
                f"{cards} graphics cards are here, and one is used: pip install 'edgebuild[train]' "
                "and start this by `accelerate launch`"
            )
        return Alone(torch.device("cuda" if cards else "cpu"))
    accelerate = importlib.import_module("accelerate")
    patience = accelerate.InitProcessGroupKwargs(timeout=PATIENCE)
    found: Machine = accelerate.Accelerator(kwargs_handlers=[patience])
    return found


def require_transformers(folder: Path) -> None:
    """A clear word before long work.

    Raises:
        MissingPackage: transformers is not installed.
    """
    try:
        importlib.import_module("transformers")
    except ImportError:
        raise MissingPackage(
            f"{folder} is trained as a network of transformers: pip install 'edgebuild[hf]'; or "
            "prune alone, with --steps 0"
        ) from None


@dataclass(frozen=True)
class Classroom:
    """A teacher and the folder of what it teaches, on a machine."""

    teacher: Subject
    pruned: Path
    corpus: Corpus
    machine: Machine

    def student(self) -> nn.Module:
        return _load(self.pruned, self.teacher, self.machine, torch.float32)

    @functools.cached_property
    def teaching(self) -> nn.Module:
        """In the types that it is stored in; on processors as floats, which they multiply best."""
        dtype = torch.float32 if self.machine.device.type == "cpu" else "auto"
        found = _load(self.teacher.checkpoint.path, self.teacher, self.machine, dtype)
        return found.to(self.machine.device).requires_grad_(False)

    def training(self, student: nn.Module, effort: Effort, steps: int) -> Recovery:
        """Everything ready to train a student."""
        rate = effort.learning_rate or usual_rate(
            sum(each.numel() for each in student.parameters())
        )
        settings = Settings(
            batch_size=effort.batch,
            learning_rate=rate / RATE_WITHOUT_NORM,
            temperature=effort.temperature,
            label_weight=effort.label_weight,
        )
        plan = Plan(steps, seed=effort.seed)
        lesson = Lesson(self.teaching, self.corpus.learning, plan, settings, self.machine)
        judge = Judge(self.teaching, self.corpus.stopping, settings, self.machine)
        return Recovery(student, lesson, judge)


@dataclass(frozen=True)
class Recovered:
    """A student's weights by their names, and how many steps it took."""

    weights: Mapping[str, Tensor]
    steps: int


def recovered(
    room: Classroom, effort: Effort, steps: int, checkpoint: Path, progress: Progress
) -> Recovered:
    """The student in its best state, after so many steps at most.

    What was best on the stretches that end the training is kept, the starting state among them.
    Killed, it goes on from `checkpoint`, and gives the same.

    Raises:
        InputError: a batch that cannot be divided among the processes.
        MethodFailed: the loss is no number any more.
    """
    training = room.training(room.student(), effort, steps)
    train(training, progress, checkpoint)
    network: nn.Module = room.machine.unwrap_model(training.student)
    return Recovered(network.state_dict(), training.step)


def steps_within(minutes: float, room: Classroom, effort: Effort) -> int:
    """How many steps a training has that takes so long, its looks included."""
    training = room.training(room.student(), effort, FEWEST_STEPS)
    # The first step allocates memory.
    training.learn()
    step = min(seconds_of(training.learn) for _ in range(TIMED_STEPS))
    look = seconds_of(training.look)
    looks = training.lesson.settings.looks
    found = torch.tensor((60 * minutes - looks * look) / step, device=room.machine.device)
    # All processes must come to the same.
    return max(int(room.machine.reduce(found, "mean")), FEWEST_STEPS)


def usual_rate(parameters: int) -> float:
    """The highest learning rate for a decoder of this size (Kaplan et al., arXiv 2001.08361)."""
    return max(3.239e-3 - 1.395e-4 * math.log(parameters), LOWEST_RATE)


@dataclass(frozen=True)
class Lesson:
    """The stretches of a step, and how far from the teacher a student is on them."""

    teacher: nn.Module
    stretches: Tokens
    plan: Plan
    settings: Settings
    machine: Machine

    def __post_init__(self) -> None:
        if self.batch_size % self.machine.num_processes:
            raise InputError(
                f"--batch {self.batch_size} cannot be divided among {self.machine.num_processes} "
                "processes: give a multiple"
            )

    @property
    def batch_size(self) -> int:
        return self.settings.batch_size

    def plain_inputs(self, step: int) -> tuple[Tensor, ...]:
        """The tokens of this process's stretches, (stretches, length)."""
        numbers = batch_numbers(step, self.batch_size, len(self.stretches), self.plan.seed)
        own = numbers[self.machine.process_index :: self.machine.num_processes]
        return (torch.from_numpy(self.stretches[own]).to(self.machine.device),)

    def loss(self, student: nn.Module, step: int) -> Tensor:
        """Nats a token, times the squared temperature."""
        (tokens,) = self.plain_inputs(step)
        temperature, share = self.settings.temperature, self.settings.label_weight
        return _distance(student, self.teacher, tokens, temperature, share)


@dataclass(frozen=True)
class Judge:
    """Minus the divergence of a student from its teacher, in nats a token; or what it is taught."""

    teacher: nn.Module
    stretches: Tokens
    settings: Settings
    machine: Machine

    @property
    def numbers(self) -> np.ndarray:
        return np.arange(len(self.stretches))

    @property
    def goal(self) -> float:
        return 0.0

    @torch.no_grad()
    def __call__(self, student: nn.Module) -> float:
        own = self.stretches[self.machine.process_index :: self.machine.num_processes]
        total = torch.zeros((), device=self.machine.device)
        share, at_once = self.settings.label_weight, self.settings.batch_size
        for first in range(0, len(own), at_once):
            tokens = torch.from_numpy(own[first : first + at_once]).to(self.machine.device)
            total += _distance(student, self.teacher, tokens, 1.0, share) * len(tokens)
        return -float(self.machine.reduce(total, "sum")) / len(self.stretches)


class Recovery(Training[Lesson, Judge]):
    """A training by one process or several; the first one keeps what it goes on from."""

    def __init__(self, student: nn.Module, lesson: Lesson, judge: Judge) -> None:
        super().__init__(student, lesson, judge)
        self.machine = lesson.machine
        self.student, self.optimizer = self.machine.prepare(student, self.optimizer)

    def descend(self, loss: Tensor) -> None:
        self.machine.backward(loss)
        self.machine.clip_grad_norm_(self.student.parameters(), LONGEST_GRADIENT)
        self.optimizer.step()

    def store(self, path: Path) -> None:
        if self.machine.is_main_process:
            super().store(path)


def logits(network: nn.Module, tokens: Tensor) -> Tensor:
    """[stretches, tokens, vocabulary], as floats of four bytes."""
    found: Tensor = network(input_ids=tokens, use_cache=False).logits
    return found.float()


def _distance(
    student: nn.Module, teacher: nn.Module, tokens: Tensor, temperature: float, share: float
) -> Tensor:
    """Forward KL from the teacher; with this share of the surprise by the tokens that come."""
    got = logits(student, tokens)
    distance = torch.zeros((), device=got.device)
    if share < 1:
        with torch.no_grad():
            wanted = logits(teacher, tokens)
        divergence = LOGITS.distance(got.flatten(0, 1), wanted.flatten(0, 1), temperature)
        distance = distance + (1 - share) * divergence
    if share > 0:
        surprise = LOGITS.surprise(got[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        distance = distance + share * surprise
    return distance


def _load(folder: Path, subject: Subject, machine: Machine, dtype: Any) -> nn.Module:
    """A checkpoint's network in eval mode; no code of its own is run.

    Raises:
        InvalidCheckpoint: transformers cannot load it, or lacks weights.
    """
    loader: Any = importlib.import_module("transformers").AutoModelForCausalLM
    # The fused kernel knows no caps of scores.
    attention = "eager" if subject.network.score_cap else "sdpa"
    try:
        with without_progress_bars():
            model, report = loader.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=attention,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as problem:
        # Another library's, about a user's files.
        raise InvalidCheckpoint(f"{folder} cannot be loaded: {first_line(problem)}") from problem
    if missing := sorted(report["missing_keys"]):
        raise InvalidCheckpoint(f"{folder} lacks {missing[0]} for transformers")
    found: nn.Module = model.eval()
    return found
