"""What one build works on: the network captured, the data stored, the wishes settled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import torch

from edgebuild.cache import Cache, digest
from edgebuild.capture import capture
from edgebuild.methods._batch_norm_statistics import Statistics, referred, statistics_of
from edgebuild.samples import StoredSamples, store_split
from edgebuild.search.score import agreement
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.errors import InvalidWorkload
from edgebuild.vocabulary.program import Program
from edgebuild.vocabulary.scoring import scored
from edgebuild.vocabulary.target import Budget, Target
from edgebuild.vocabulary.workload import Workload

# Ranges that fewer calibration samples show are mostly too narrow for the next one.
FEWEST = 8
# Names the network that nothing was done to.
UNCHANGED = ""


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
    # Whether candidates are measured on the target itself, though it is another machine than this.
    has_target: bool = False
    # Networks in memory: what every change begins with, so that methods find again what they found
    # out about it; and what cannot be stored, because its classes have no importable name.
    held: dict[str, torch.nn.Module] = field(default_factory=dict)
    # The network's own scores, by split and rows: every candidate is compared with the same ones.
    own_scores: dict[tuple[str, bytes], float] = field(default_factory=dict, init=False)

    @property
    def lesson(self) -> Workload:
        """The workload as methods may see it: its stored splits, and nothing of the test split.

        Batch normalizations of its network, which is always the same, speak of the calibration
        split.
        """
        if UNCHANGED not in self.held:
            self.held[UNCHANGED] = referred(self.workload.network, self._statistics())
        return replace(
            self.workload,
            network=self.held[UNCHANGED],
            calibration=self.calibration,
            validation=self.validation,
            test=(),
        )

    def _statistics(self) -> Statistics:
        def make(folder: Path) -> None:
            found = statistics_of(self.workload.network, self.calibration)
            torch.save(found, folder / "statistics.pt")

        key = digest(self.program.fingerprint, self.calibration.digest)
        found: Statistics = torch.load(self.cache.entry("statistics", key, make) / "statistics.pt")
        return found

    def reference(
        self, samples: StoredSamples, program: Program | None = None, limit: int | None = None
    ) -> list[np.ndarray]:
        """The outputs of a program in PyTorch, the network's own unless given.

        One array an output, (count, …); of at most `limit` samples.
        """
        source = program or self.program

        def make(folder: Path) -> None:
            module = source.exported.module(check_guards=False)
            with torch.no_grad():
                rows = [self._flat(module, row) for row in samples.rows(limit)]
            for index, column in enumerate(zip(*rows, strict=True)):
                np.save(folder / f"output-{index}.npy", np.concatenate(column))

        key = digest(source.fingerprint, samples.digest, limit)
        return stored_outputs(self.cache.entry("reference", key, make))

    @staticmethod
    def _flat(module: torch.nn.Module, row: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        outputs = module(*map(torch.tensor, row))
        return [tensor.numpy() for tensor in torch.utils._pytree.tree_leaves(outputs)]

    @property
    def is_on_target(self) -> bool:
        """Whether what is measured is measured on the target."""
        return self.has_target or self.target.is_this_machine

    def score(
        self, outputs: list[np.ndarray], samples: StoredSamples, rows: np.ndarray | None = None
    ) -> float:
        """The workload's score of a split's outputs, or their agreement with the network.

        `rows` are the numbers of the samples that the outputs are of; all of them unless given.

        Raises:
            InvalidWorkload: the score function fails, or gives no number.
        """
        if self.workload.score is None:
            return agreement(outputs, at(rows, self.reference(samples)))
        labels = samples.labels()
        if rows is not None and labels is not None:
            labels = labels[rows]
        return scored(self.workload.score, self.program.restore(outputs), labels)

    @property
    def scoring(self) -> str:
        """Names the score by its code: what is chosen by a score must not outlive its change."""
        score = self.workload.score
        code = getattr(score, "__code__", None)
        return digest(_words(code)) if code else str(score and type(score).__qualname__)

    def own_score(self, samples: StoredSamples, rows: np.ndarray | None = None) -> float:
        """The network's own score on a split, or on the samples of these numbers; computed once.

        Raises:
            InvalidWorkload: as `score`.
        """
        key = samples.digest, b"" if rows is None else rows.tobytes()
        if key not in self.own_scores:
            outputs = at(rows, self.reference(samples))
            self.own_scores[key] = self.score(outputs, samples, rows)
        return self.own_scores[key]

    @property
    def float_score(self) -> float:
        """The network's own score on the validation split."""
        return self.own_score(self.validation)


def at(rows: np.ndarray | None, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Of every array these rows; all unless given."""
    return arrays if rows is None else [array[rows] for array in arrays]


def _words(code: CodeType) -> list[object]:
    """What a function does, whatever file and line it stands in."""
    constants = [_words(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), constants]


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
    calibration, validation, test = (stored[name] for name in splits)
    if calibration.count < FEWEST:
        progress.say(
            f"calibration data too small: {calibration.count} of at least {FEWEST} samples. Ranges "
            "of integers and losses by layer are read from them: give more"
        )
    return Case(workload, program, calibration, validation, test, target, budget, cache)


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
