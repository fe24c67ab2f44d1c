"""How far a student's outputs and features are from its teacher's, and from the labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

# How nearly numbers must agree to be taken for equal, such as the sum of probabilities and 1.
NEARLY = 1e-3


class Reading(Enum):
    """What an output's numbers are taken for."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    VALUES = "values"


@dataclass(frozen=True)
class Output:
    """One output of the teacher: what its numbers are, and how much they vary between samples."""

    reading: Reading
    spread: float

    def distance(self, student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """Classes: KL divergence of the student from the teacher, mean over samples, in nats.

        Both are softened by the temperature, and the loss is scaled by its square (Hinton et
        al., arXiv 1503.02531). Anything else: squared error as a share of the teacher's variance.
        """
        if self.reading is Reading.VALUES:
            return functional.mse_loss(student, teacher) / self.spread
        wanted, got = (self._log_shares(values, temperature) for values in (teacher, student))
        divergence = functional.kl_div(got, wanted, reduction="batchmean", log_target=True)
        return divergence * temperature**2

    def surprise(self, student: Tensor, class_ids: Tensor) -> Tensor:
        """Cross-entropy of the student's classes with the labels, in nats."""
        return functional.nll_loss(self._log_shares(student, 1.0), class_ids)

    def _log_shares(self, values: Tensor, temperature: float) -> Tensor:
        if self.reading is Reading.PROBABILITIES:
            values = values.clamp_min(torch.finfo(values.dtype).tiny).log()
        return functional.log_softmax(values / temperature, dim=1)


def leaves(outputs: Any) -> list[Tensor]:
    """The floating tensors among a network's outputs, whatever holds them."""
    return [
        leaf
        for leaf in pytree.tree_leaves(outputs)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]


def read_output(answer: Tensor, has_class_ids: bool | None) -> Output:
    """What an output of the teacher is, judged by its answers to some samples, (count, …).

    (count, classes) is taken for logits, or for probabilities where its rows are such. It is
    neither where there are labels that are no class ids (`has_class_ids` is False; None without
    labels), nor where all its rows have the same length, as normalized embeddings have.
    """
    return Output(_reading(answer, has_class_ids), spread(answer))


def _reading(answer: Tensor, has_class_ids: bool | None) -> Reading:
    if answer.ndim != 2 or answer.shape[1] < 2 or has_class_ids is False:
        return Reading.VALUES
    if answer.min() >= 0 and (answer.sum(dim=1) - 1).abs().max() < NEARLY:
        return Reading.PROBABILITIES
    lengths = answer.norm(dim=1)
    if len(answer) > 1 and lengths.max() - lengths.min() < NEARLY * lengths.max():
        return Reading.VALUES
    return Reading.LOGITS


def spread(answer: Tensor) -> float:
    """The variance between samples; of what does not vary, the mean square."""
    variance = float((answer - answer.mean(dim=0)).square().mean())
    energy = float(answer.square().mean())
    return variance if variance > 1e-8 * energy else energy or 1.0


@contextmanager
def watching(network: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """What the modules of these names put out, filled while the network is called."""
    seen: dict[str, Tensor] = {}
    modules = dict(network.named_modules())
    hooks = [modules[name].register_forward_hook(_keep(seen, name)) for name in names]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _keep(seen: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            seen[name] = output

    return keep


def shared_features(
    teacher: nn.Module, student: nn.Module, inputs: tuple[Tensor, ...], most: int
) -> list[str]:
    """The modules whose outputs have the same shape in both networks.

    At most so many, evenly spread in the order of the calls; outputs of the whole network are
    compared anyway. All outputs are held at once, so that few inputs are better than many.
    """
    names = [
        {name for name, module in network.named_modules() if name and has_weights(module)}
        for network in (teacher, student)
    ]
    both = sorted(set.intersection(*names))
    with torch.no_grad(), watching(teacher, both) as wanted, watching(student, both) as got:
        answers = leaves(teacher(*inputs))
        student(*inputs)
    final = {answer.data_ptr() for answer in answers}
    same = [
        name
        for name, feature in wanted.items()
        if name in got and feature.shape == got[name].shape and feature.data_ptr() not in final
    ]
    taken = [same[number * len(same) // most] for number in range(most)] if same else []
    return list(dict.fromkeys(taken))


def has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def feature_distance(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], spreads: Mapping[str, float]
) -> Tensor:
    """Squared error of intermediate features as a share of their variance, mean over layers.

    Romero et al., FitNets, arXiv 1412.6550, for layers that have the same shape in both.
    """
    losses = [
        functional.mse_loss(student[name], teacher[name]) / spread
        for name, spread in spreads.items()
    ]
    return torch.stack(losses).mean()
