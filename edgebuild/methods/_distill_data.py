"""Reads a split as rows, in memory or mapped; draws batches of them, and varies images."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgebuild.cache import Cache
from edgebuild.samples import StoredSamples, store_split
from edgebuild.vocabulary.workload import Split

BYTES_IN_MEMORY = 1e9
# Noise, as a share of the standard deviation of the batch.
NOISE = 0.1


@dataclass(frozen=True)
class Rows:
    """A split: one array an input and one of labels, each (count, …); `digest` names the content.

    The inputs are in memory up to a gigabyte, and mapped files beyond.
    """

    inputs: tuple[np.ndarray, ...]
    labels: np.ndarray | None
    digest: str

    def __len__(self) -> int:
        return len(self.inputs[0])

    def take(self, numbers: np.ndarray) -> tuple[Tensor, ...]:
        """The inputs of the rows with these numbers, one tensor an input."""
        return tuple(torch.from_numpy(array[numbers]) for array in self.inputs)

    def evenly(self, limit: int) -> np.ndarray:
        """The numbers of at most so many rows, at even distances: splits may be sorted."""
        taken = min(limit, len(self))
        return np.arange(taken) * len(self) // taken

    @property
    def are_images(self) -> bool:
        """Whether inputs can be mixed and mirrored: all floating, and one of them (count, C, H, W).

        Token ids, and whatever comes with them, cannot.
        """
        are_floating = all(array.dtype.kind == "f" for array in self.inputs)
        return are_floating and any(array.ndim == 4 for array in self.inputs)

    @property
    def has_class_ids(self) -> bool | None:
        """Whether the labels are one whole number from 0 a row; None without labels."""
        labels = self.labels
        if labels is None:
            return None
        return labels.size == len(self) and labels.dtype.kind in "iu" and bool(labels.min() >= 0)


@contextmanager
def open_rows(split: Split, example: tuple[Tensor, ...], name: str) -> Iterator[Rows]:
    """Reads a split; what is not stored yet is written to a temporary folder first.

    Raises:
        InvalidWorkload: an empty split, or a sample that is not shaped like the example.
    """
    if isinstance(split, StoredSamples):
        yield _rows(split)
        return
    with tempfile.TemporaryDirectory(prefix="edgebuild-") as folder:
        yield _rows(store_split(split, example, name, Cache(Path(folder))))


def _rows(stored: StoredSamples) -> Rows:
    inputs = stored.inputs()
    if sum(array.nbytes for array in inputs) <= BYTES_IN_MEMORY:
        inputs = [np.array(array) for array in inputs]
    labels = stored.labels()
    return Rows(tuple(inputs), None if labels is None else np.array(labels), stored.digest)


def batch_numbers(step: int, size: int, count: int, seed: int) -> np.ndarray:
    """The numbers of a step's rows: passes over all rows, each in an order of its own.

    They follow from the step alone, so that a run can go on from any of them.
    """
    positions = np.arange(step * size, (step + 1) * size)
    passes = positions // count
    return np.concatenate(
        [
            _order(count, seed, number)[positions[passes == number] % count]
            for number in range(passes[0], passes[-1] + 1)
        ]
    )


@functools.lru_cache(maxsize=2)
def _order(count: int, seed: int, number: int) -> np.ndarray:
    return torch.randperm(count, generator=seeded(seed, number)).numpy()


def seeded(*numbers: int) -> torch.Generator:
    """A generator of its own for all that is drawn under these numbers, such as seed and step."""
    mixed = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0] >> np.uint64(1)))


def varied(inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Images like these, for the teacher to label: mixed in pairs, mirrored and noisy.

    Zhang et al., mixup, arXiv 1710.09412; for distillation, where teacher and student see the
    same variation, Beyer et al., arXiv 2106.05237. Values stay in the range of the batch.
    """
    count = len(inputs[0])
    partners = torch.randperm(count, generator=generator)
    weights = torch.rand(count, generator=generator)
    is_mirrored = torch.rand(count, generator=generator) < 0.5
    return tuple(_varied(tensor, partners, weights, is_mirrored, generator) for tensor in inputs)


def _varied(
    tensor: Tensor,
    partners: Tensor,
    weights: Tensor,
    is_mirrored: Tensor,
    generator: torch.Generator,
) -> Tensor:
    if tensor.ndim == 4:
        mirror = is_mirrored.reshape(-1, 1, 1, 1)
        tensor = torch.where(mirror, tensor.flip(-1), tensor)
    share = weights.reshape(-1, *[1] * (tensor.ndim - 1)).to(tensor.dtype)
    mixed = torch.lerp(tensor, tensor[partners], share)
    noise = torch.randn(mixed.shape, generator=generator, dtype=mixed.dtype)
    return (mixed + NOISE * tensor.std() * noise).clamp(tensor.min(), tensor.max())
