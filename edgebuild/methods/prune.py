"""Removes channels, attention heads and whole blocks, so that less is left to compute."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from edgebuild.methods._channel_groups import ChannelGroup
from edgebuild.methods._prune_anatomy import Anatomy, anatomy, shrunk
from edgebuild.methods._prune_importance import Criterion
from edgebuild.methods._prune_widths import units_kept
from edgebuild.vocabulary.contracts import WORKPLACE, Stage, Workplace
from edgebuild.vocabulary.errors import MethodFailed, did_you_mean
from edgebuild.vocabulary.offer import Choice, Offer, Part, PartKind
from edgebuild.vocabulary.target import RuntimeFacts
from edgebuild.vocabulary.workload import Workload

NAME = "prune"
SKIP = Choice(NAME, "skip")


@dataclass(frozen=True)
class Prune:
    """Structured pruning: the network becomes smaller, nothing is masked.

    Coupled channels go together, as in Fang et al., DepGraph, arXiv 2301.12900; what they had to
    say is taken over by the others where these can tell it, as in He et al., arXiv 1707.06168.
    Blocks with a shortcut around them can go as a whole (Huang et al., arXiv 1603.09382).

    Attributes:
        importance: the criterion by which channels stay.
        shares: the shares of the channels that are offered to be kept.
        samples: how many calibration samples that is computed on.
    """

    # What lost least on digits and solar cells, where single groups went to 75 % of their width.
    importance: Criterion = "reconstruction"
    shares: tuple[float, ...] = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
    samples: int = 64
    stage: ClassVar[Stage] = Stage.SHRINK

    def offers(self, workload: Workload, runtime: RuntimeFacts) -> Iterator[Offer]:
        found = anatomy(workload.network, workload)
        for path, group in found.groups.items():
            part = Part(path, PartKind.CHANNELS)
            for units in units_kept(group, self.shares, runtime.channel_multiple):
                outputs, inputs = found.widths({path: units})
                yield Offer(part, Choice(NAME, _option(group, units)), outputs, inputs)
        for path in found.blocks:
            part = Part(path, PartKind.BLOCK)
            yield Offer(part, SKIP, removed=found.layers_of(path))

    def declined(self, workload: Workload, runtime: RuntimeFacts) -> Mapping[str, str]:
        found = anatomy(workload.network, workload)
        has_parts = found.groups or found.blocks or found.declined
        return found.declined if has_parts else {"": "it has no channels and no blocks to remove"}

    def apply(
        self,
        network: nn.Module,
        chosen: Mapping[Part, Choice],
        workload: Workload,
        workplace: Workplace = WORKPLACE,
    ) -> nn.Module:
        with workplace.progress.step("Removing channels and blocks"):
            found = anatomy(network, workload)
            blocks = [
                _skipped(found, part, choice)
                for part, choice in chosen.items()
                if part.kind is PartKind.BLOCK
            ]
            kept = {
                part.path: _units(found, part, choice)
                for part, choice in chosen.items()
                if part.kind is not PartKind.BLOCK
            }
            return shrunk(network, workload, kept, blocks, self.importance, self.samples)


def _option(group: ChannelGroup, units: int) -> str:
    if group.has_heads:
        return f"keep {units} of {group.units} heads"
    return f"keep {units * group.unit_channels} of {group.channels}"


def _skipped(found: Anatomy, part: Part, choice: Choice) -> str:
    """The path of the block that a choice skips.

    Raises:
        MethodFailed: the choice cannot be carried out.
    """
    if part.path not in found.blocks:
        raise _unknown(found, part, choice, found.blocks)
    if choice.option != SKIP.option:
        raise MethodFailed(f"prune cannot {choice.option!r} block {part.path!r}, only skip it")
    return part.path


def _units(found: Anatomy, part: Part, choice: Choice) -> int:
    """How many units of a group a choice keeps.

    Raises:
        MethodFailed: the choice cannot be carried out.
    """
    group = found.groups.get(part.path)
    if part.kind is not PartKind.CHANNELS or group is None:
        raise _unknown(found, part, choice, found.groups)
    words = re.fullmatch(r"keep (\d+) of (\d+)( heads)?", choice.option)
    size = 1 if group.has_heads else group.unit_channels
    if words is None or bool(words[3]) is not group.has_heads:
        raise MethodFailed(
            f"prune cannot {choice.option!r} channels {part.path!r}: "
            f"choices there read like {_option(group, group.units // 2)!r}"
        )
    kept, total = int(words[1]), int(words[2])
    if total != group.units * size or not 0 < kept < total or kept % size:
        raise MethodFailed(
            f"prune cannot {choice.option!r} channels {part.path!r}: "
            f"there are {group.units * size}, to be removed {size} at a time"
        )
    return kept // size


def _unknown(
    found: Anatomy, part: Part, choice: Choice, known: Mapping[str, object]
) -> MethodFailed:
    declined = found.declined.get(part.path) or found.declined.get("")
    reason = declined or f"nothing there can be removed.{did_you_mean(part.path, known)}"
    return MethodFailed(f"prune cannot {choice.option!r} {part.kind} {part.path!r}: {reason}")
