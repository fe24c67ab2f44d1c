"""Carries out a recipe's changes to the network: method by method, in the order of their stages."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from edgebuild import catalog
from edgebuild.cache import digest
from edgebuild.capture import capture, read
from edgebuild.methods._batch_norm_repair import repaired
from edgebuild.search.case import Case
from edgebuild.vocabulary.contracts import Progress, Stage, Workplace
from edgebuild.vocabulary.offer import Choice, Part
from edgebuild.vocabulary.program import Program
from edgebuild.vocabulary.recipe import change_words

Reshaped = Sequence[tuple[Part, Choice]]
# After these stages activations have other statistics than before.
REPAIRED = (Stage.SHRINK, Stage.FACTORIZE)


def reshaped_program(case: Case, reshaped: Reshaped, progress: Progress) -> Program:
    """The network after the given changes, captured; the workload's own where there are none.

    Raises:
        MethodFailed: a choice that cannot be carried out.
        NotExportable: a changed network that cannot be captured.
    """
    if not reshaped:
        return case.program

    def make(folder: Path) -> None:
        network = reshaped_network(case, reshaped, progress)
        program = capture(network, case.workload.example)
        torch.export.save(program.exported, folder / "program.pt2")

    folder = case.cache.entry("program", _key(case, reshaped), make)
    # What was just captured is read back too, so that the first build and later ones agree.
    return read(torch.export.load(folder / "program.pt2"))


def changed_once(case: Case, part: Part, choice: Choice) -> nn.Module:
    """The network after one change alone, which is not kept: there are hundreds of them."""
    method = catalog.method(choice.method)
    return method.apply(case.lesson.network, {part: choice}, case.lesson)


def reshaped_network(case: Case, reshaped: Reshaped, progress: Progress) -> nn.Module:
    """The network after the given changes; each method's result is kept for those that follow."""
    if not reshaped:
        return case.lesson.network
    key = _key(case, reshaped)
    if key in case.held:
        return case.held[key]

    def make(folder: Path) -> None:
        scratch = case.cache.scratch("recovery", key)
        changed = _changed(case, reshaped, Workplace(progress, scratch))
        try:
            torch.save(changed, folder / "network.pt")
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            progress.say(f"[yellow]the network cannot be stored for a next build: {error}")
            case.held[key] = changed
            raise _Unstored from error
        case.cache.forget(scratch)

    try:
        folder = case.cache.entry("network", key, make)
    except _Unstored:
        return case.held[key]
    # Our own cache's file: its classes are the workload's.
    network: nn.Module = torch.load(folder / "network.pt", weights_only=False)
    return network


def _changed(case: Case, reshaped: Reshaped, workplace: Workplace) -> nn.Module:
    earlier, last = _split(reshaped)
    network = reshaped_network(case, earlier, workplace.progress)
    method = catalog.method(last[0][1].method)
    changed = method.apply(network, dict(last), case.lesson, workplace)
    return repaired(changed, case.lesson) if method.stage in REPAIRED else changed


class _Unstored(Exception):
    """The network is held in memory instead."""


def _split(reshaped: Reshaped) -> tuple[Reshaped, Reshaped]:
    """What comes first, and what the last method does."""
    last = max({choice.method for _, choice in reshaped}, key=_order)
    earlier = [(part, choice) for part, choice in reshaped if choice.method != last]
    return earlier, [(part, choice) for part, choice in reshaped if choice.method == last]


def _order(method: str) -> tuple[Stage, str]:
    return catalog.method(method).stage, method


def _key(case: Case, reshaped: Reshaped) -> str:
    """Names the result: the network, the data that methods look at, and every choice."""
    data = case.calibration.digest, case.validation.digest
    return digest(case.program.fingerprint, data, case.scoring, change_words(reshaped))
