"""What one build works on: the network captured, the data stored, the wishes settled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgebuild.cache import Cache, digest
from edgebuild.capture import capture
from edgebuild.samples import StoredSamples, store_split
from edgebuild.search.score import agreement
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.errors import InvalidWorkload
from edgebuild.vocabulary.program import Program
from edgebuild.vocabulary.target import Budget, Target
from edgebuild.vocabulary.workload import Workload


@dataclass(frozen=True)
class Case:
    """A workload on a target under a budget, ready to search."""

    workload: Workload
    program: Program
    calibration: StoredSamples
    validation: StoredSamples
    test: StoredSamples
    target: Target
    budget: Budget
    cache: Cache

    def reference(self, samples: StoredSamples) -> list[np.ndarray]:
        """The network's own outputs, one array an output, (count, …)."""

        def make(folder: Path) -> None:
            module = self.program.exported.module(check_guards=False)
            with torch.no_grad():
                rows = [self._flat(module, row) for row in samples.rows()]
            for index, column in enumerate(zip(*rows, strict=True)):
                np.save(folder / f"output-{index}.npy", np.concatenate(column))

        key = digest(self.program.fingerprint, samples.digest)
        return stored_outputs(self.cache.entry("reference", key, make))

    @staticmethod
    def _flat(module: torch.nn.Module, row: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        outputs = module(*map(torch.tensor, row))
        return [tensor.numpy() for tensor in torch.utils._pytree.tree_leaves(outputs)]

    def score(self, outputs: list[np.ndarray], samples: StoredSamples) -> float:
        """The workload's score of a split's outputs, or their agreement with the network.

        Raises:
            InvalidWorkload: the score function fails, or gives no number.
        """
        if self.workload.score is None:
            return agreement(outputs, self.reference(samples))
        try:
            value = self.workload.score(self.program.restore(outputs), samples.labels())
            score = float(value)
        except Exception as error:
            raise InvalidWorkload(
                f"the score function failed: {type(error).__name__}: {error}"
            ) from error
        if not np.isfinite(score):
            raise InvalidWorkload(f"the score function returned {score}: it must be a number")
        return score

    @cached_property
    def float_score(self) -> float:
        """The network's own score on the validation split."""
        return self.score(self.reference(self.validation), self.validation)


def open_case(
    workload: Workload, target: Target, budget: Budget, cache: Cache, progress: Progress
) -> Case:
    """Captures the network and stores the splits.

    Raises:
        InvalidWorkload: an empty split, or samples that do not fit the network.
        NotExportable: a network that torch.export cannot capture.
    """
    splits: dict[str, Any] = {
        "calibration": workload.calibration,
        "validation": workload.validation,
        "test": workload.test,
    }
    with progress.step("Reading the workload", total=len(splits) + 1) as step:
        program = capture(workload.network, workload.example)
        step.advance()
        stored = {}
        for name, split in splits.items():
            stored[name] = store_split(split, workload.example, name, cache)
            step.advance()
    _refuse_shared_samples(stored)
    return Case(workload, program, target=target, budget=budget, cache=cache, **stored)


def _refuse_shared_samples(splits: Mapping[str, StoredSamples]) -> None:
    for name in ("calibration", "validation"):
        if splits[name].digest == splits["test"].digest:
            raise InvalidWorkload(
                f"{name} and test hold the same samples: "
                "give a test split that neither calibration nor validation has seen"
            )


def stored_outputs(folder: Path) -> list[np.ndarray]:
    """The arrays `output-0.npy`, `output-1.npy` … of a folder."""
    files = sorted(folder.glob("output-*.npy"), key=lambda file: int(file.stem[7:]))
    return [np.load(file) for file in files]
