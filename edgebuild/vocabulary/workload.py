"""What a user hands in: a trained network, its data and how it is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

Score = Callable[[Any, Any], float]


def whole_drop(score: float) -> float:
    """What a drop of 100 % is: one of a score from 0 to 1; of another, such as an error, its size.

    An error of 1e-4 that has doubled has lost 100 %, and not 0.01.
    """
    return 1.0 if 0 <= score <= 1 else abs(score)


class IndexableSplit(Protocol):
    """Samples by number, such as a list or a torch Dataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


# A sized and indexable, or a re-iterable, collection of `(inputs, label)`: `inputs` is a tensor or
# a tuple of tensors shaped like the workload's example, batch dimension included (any batch size);
# `label` is an array of the same batch size, or None where the score needs none.
Split = IndexableSplit | Iterable[Any]


@dataclass(frozen=True)
class Workload:
    """A network, one example input, samples and a score.

    Attributes:
        name: a short name; it becomes part of reports.
        network: an `nn.Module` in eval mode.
        example: the inputs of one call, batch 1, as deployed.
        calibration: samples to calibrate and to recover with.
        validation: samples the search looks at.
        test: samples that nobody looks at until the end.
        score: `(outputs, labels) -> float` of a whole split, higher is better; outputs are numpy
            arrays joined along the batch, in what the network returns: one array, a tuple or list
            in its order, or a dict with its keys. Labels are one array, joined likewise, or None.
            Without a score, artifacts are scored by their agreement with the network.
        notices: licences of what went in, by name; the bundle carries them.
        is_synthetic: whether the inputs are made up, so that no score of them is the task's.
    """

    name: str
    network: torch.nn.Module
    example: tuple[torch.Tensor, ...]
    calibration: Split
    validation: Split
    test: Split
    score: Score | None = None
    notices: Mapping[str, str] = field(default_factory=dict)
    is_synthetic: bool = False

    @property
    def stand_in(self) -> str:
        """What is scored where it is not the task; nothing where it is.

        Such as "agreement with the original, on synthetic inputs".
        """
        scored = "" if self.score else "agreement with the original"
        fed = "on synthetic inputs" if self.is_synthetic else ""
        return ", ".join(filter(None, (scored, fed)))
