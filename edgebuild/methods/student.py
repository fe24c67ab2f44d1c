"""Proposes a smaller network of the same architecture, for the teacher to teach."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from edgebuild.methods._prune_anatomy import Anatomy, anatomy, shrunk
from edgebuild.methods._prune_importance import Criterion
from edgebuild.methods._prune_widths import units_at
from edgebuild.vocabulary.contracts import WORKPLACE, Stage, Workplace
from edgebuild.vocabulary.errors import MethodFailed
from edgebuild.vocabulary.offer import NETWORK, Choice, Offer, Part
from edgebuild.vocabulary.target import RuntimeFacts
from edgebuild.vocabulary.workload import Workload

NAME = "student"


@dataclass(frozen=True)
class Student:
    """Search for a student: the teacher with all widths and the number of blocks multiplied.

    Multipliers as in Howard et al., MobileNets, arXiv 1704.04861, for widths, and Tan and Le,
    EfficientNet, arXiv 1905.11946, for depth. A student that inherits the teacher's most important
    channels starts near the teacher, as in Jiao et al., TinyBERT, arXiv 1909.10351.

    Attributes:
        widths: the shares of every group's channels.
        depths: the shares of the blocks that a network can do without.
        initialization: "inherited" from the teacher, or "fresh".
        importance: the criterion by which channels are inherited.
        samples: how many calibration samples that is computed on.
    """

    widths: tuple[float, ...] = (0.75, 0.5, 0.25, 0.125)
    depths: tuple[float, ...] = (1.0, 0.67)
    initialization: Literal["inherited", "fresh"] = "inherited"
    importance: Criterion = "reconstruction"
    samples: int = 64
    stage: ClassVar[Stage] = Stage.SHRINK

    def offers(self, workload: Workload, runtime: RuntimeFacts) -> Iterator[Offer]:
        found = anatomy(workload.network, workload)
        is_fresh = self.initialization == "fresh"
        seen = []
        for size in (
            _Size(width, depth, runtime.channel_multiple, is_fresh)
            for width in self.widths
            for depth in self.depths
        ):
            kept, blocks = size.kept(found), size.skipped(found)
            if (kept or blocks) and (kept, blocks) not in seen:
                seen.append((kept, blocks))
                yield _offer(found, size)

    def declined(self, workload: Workload, runtime: RuntimeFacts) -> Mapping[str, str]:
        found = anatomy(workload.network, workload)
        is_smaller = any(True for _ in self.offers(workload, runtime))
        return {} if is_smaller else {"": found.declined.get("", "no width can be multiplied")}

    def apply(
        self,
        network: nn.Module,
        chosen: Mapping[Part, Choice],
        workload: Workload,
        workplace: Workplace = WORKPLACE,
    ) -> nn.Module:
        with workplace.progress.step("Making the student"):
            size = _chosen_size(chosen)
            found = anatomy(network, workload)
            if "" in found.declined:
                raise MethodFailed(f"student cannot shrink the network: {found.declined['']}")
            kept, blocks = size.kept(found), size.skipped(found)
            student = shrunk(network, workload, kept, blocks, self.importance, self.samples)
            if size.is_fresh:
                _initialize(student)
            return student


@dataclass(frozen=True)
class _Size:
    """The multipliers of a student, and what its widths are multiples of."""

    width: float
    depth: float
    multiple: int
    is_fresh: bool

    @property
    def option(self) -> str:
        words = f"width {_percent(self.width)}, depth {_percent(self.depth)}"
        steps = f", multiples of {self.multiple}" if self.multiple > 1 else ""
        return words + steps + (", fresh" if self.is_fresh else "")

    @classmethod
    def parse(cls, option: str) -> _Size | None:
        number = r"(\d+(?:\.\d+)?)"
        words = re.fullmatch(
            rf"width {number} %, depth {number} %(?:, multiples of (\d+))?(, fresh)?", option
        )
        if words is None or not 0 < float(words[1]) <= 100 or not 0 < float(words[2]) <= 100:
            return None
        width, depth = float(words[1]) / 100, float(words[2]) / 100
        return cls(width, depth, int(words[3] or 1), bool(words[4]))

    def kept(self, found: Anatomy) -> dict[str, int]:
        """The units that groups keep, where that is fewer than they have."""
        units = {
            path: units_at(group, self.width, self.multiple) for path, group in found.groups.items()
        }
        return {path: kept for path, kept in units.items() if kept < found.groups[path].units}

    def skipped(self, found: Anatomy) -> list[str]:
        """The blocks that go, evenly over the depth; of blocks in blocks the inner ones."""
        paths = [
            path
            for path in found.blocks
            if not any(other.startswith(f"{path}.") for other in found.blocks)
        ]
        count = int(len(paths) * (1 - self.depth) + 0.5)
        return [paths[(2 * number + 1) * len(paths) // (2 * count)] for number in range(count)]


def _percent(share: float) -> str:
    return f"{round(100 * share, 6):g} %"


def _offer(found: Anatomy, size: _Size) -> Offer:
    outputs, inputs = found.widths(size.kept(found))
    removed = frozenset[str]().union(*(found.layers_of(path) for path in size.skipped(found)))
    return Offer(
        NETWORK,
        Choice(NAME, size.option),
        {path: width for path, width in outputs.items() if path not in removed},
        {path: width for path, width in inputs.items() if path not in removed},
        removed=removed,
    )


def _chosen_size(chosen: Mapping[Part, Choice]) -> _Size:
    """The size that is chosen for the whole network.

    Raises:
        MethodFailed: another part, or an option that is none.
    """
    for part, choice in chosen.items():
        if part != NETWORK or _Size.parse(choice.option) is None:
            raise MethodFailed(
                f"student cannot {choice.option!r} {part.kind} {part.path!r}: a student is one "
                "for the whole network, such as 'width 50 %, depth 100 %'"
            )
    size = _Size.parse(chosen[NETWORK].option) if chosen else None
    if size is None:
        raise MethodFailed("student: no size is chosen for the network")
    return size


@torch.no_grad()
def _initialize(student: nn.Module) -> None:
    """Draws all weights anew, always the same: as the layers do, or with the spread they had."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in student.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
                continue
            for parameter in module.parameters(recurse=False):
                mean, spread = parameter.mean(), parameter.std(correction=0)
                parameter.copy_(mean + spread * torch.randn_like(parameter))
