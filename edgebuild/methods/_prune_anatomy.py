"""What of a network can be removed: found and proven once, then used by every offer and change."""

from __future__ import annotations

import copy
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from torch import nn

from edgebuild.methods._blocks import Block, find_blocks, skip
from edgebuild.methods._channel_coupling import find_coupled
from edgebuild.methods._channel_groups import ChannelGroup, Removal, remove_units
from edgebuild.methods._channel_layers import WEIGHTED, Side, size_of
from edgebuild.methods._channel_proof import Proof
from edgebuild.methods._channel_runs import Inputs, batch, is_equal, rows_of
from edgebuild.methods._prune_attention import join_again, site_of, spell_out
from edgebuild.methods._prune_importance import Criterion, Scores, importance
from edgebuild.methods._prune_moments import Moments, second_moments
from edgebuild.methods._prune_refit import refit
from edgebuild.methods._prune_widths import least_important
from edgebuild.methods._subject import Subject
from edgebuild.vocabulary.errors import told
from edgebuild.vocabulary.workload import Workload

LOG = logging.getLogger(__name__)
# Samples that a proof compares outputs on: two, so that a batch is among what must work.
PROOF_SAMPLES = 2
# Moments of nothing: then nothing can be taken over.
UNSEEN: Moments = {}


@dataclass(frozen=True)
class Anatomy:
    """The parts of one network that can be removed.

    Attributes:
        network: a copy in which attention is spelled out; the paths of groups are its own.
        groups: coupled channels, by the path that the layer has in the original.
        blocks: what can be skipped, by path.
        declined: why other channels and blocks stay, by path; by the empty path, why all of the
            network does.
    """

    network: nn.Module
    groups: Mapping[str, ChannelGroup] = field(default_factory=dict)
    blocks: Mapping[str, Block] = field(default_factory=dict)
    declined: Mapping[str, str] = field(default_factory=dict)

    def without(
        self, removal: Removal, blocks: Iterable[str] = (), moments: Moments = UNSEEN
    ) -> nn.Module:
        """A copy of the network without some units and blocks, in eval mode.

        What stays takes over, as far as moments tell how, what the units that go had to say.
        """
        changed = copy.deepcopy(self.network)
        refit(changed, removal, moments)
        remove_units(changed, removal)
        join_again(changed)
        skip(changed, blocks)
        return changed.eval()

    def widths(self, kept: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
        """The channels that layers would put out and read, if groups kept so many units.

        Only layers that would change are named, as in the original.
        """
        lost: dict[tuple[str, Side], int] = defaultdict(int)
        for path, units in kept.items():
            group = self.groups[path]
            for member in group.members:
                if member.axis is None and isinstance(self._layer(member.path), WEIGHTED):
                    gone = len(member.index[0]) * (group.units - units)
                    lost[member.path, member.side] += gone
        outputs: dict[str, int] = defaultdict(int)
        inputs: dict[str, int] = {}
        for (path, side), gone in lost.items():
            size = size_of(self._layer(path), side) - gone
            site = site_of(self.network, path)
            if side is not Side.READS:
                outputs[site] += size
            if side is not Side.WRITES:
                inputs[site] = size
        return dict(outputs), inputs

    def layers_of(self, block: str) -> frozenset[str]:
        """The layers that go with a block, as the original calls them."""
        return frozenset(site_of(self.network, path) for path in self.blocks[block].layers)

    def _layer(self, path: str) -> nn.Module:
        return self.network.get_submodule(path)


def anatomy(network: nn.Module, workload: Workload) -> Anatomy:
    """What of a network can be removed; nothing of one that cannot be traced."""
    return _studied(Subject(network, workload))


def shrunk(
    network: nn.Module,
    workload: Workload,
    kept: Mapping[str, int],
    blocks: Iterable[str],
    criterion: Criterion,
    samples: int,
) -> nn.Module:
    """A copy in which groups keep so many units, the most important, and blocks are skipped.

    `kept` has the units by the groups' paths; importance is computed on `samples` samples.
    """
    subject = Subject(network, workload)
    found = _studied(subject)
    if not kept:
        return found.without((), blocks)
    scores = _scored(subject, criterion, samples)
    groups = [(found.groups[path], units) for path, units in sorted(kept.items())]
    removal = [(group, least_important(scores[group.path], units)) for group, units in groups]
    return found.without(removal, blocks, _seen(subject, samples))


# A search asks for every offer and applies many of them to one network. What is remembered keeps
# the key's objects alive, so that their ids stay their own.
@lru_cache(maxsize=2)
def _studied(subject: Subject) -> Anatomy:
    network, example = subject.network, subject.workload.example
    try:
        samples = batch(rows_of(subject.workload.calibration, PROOF_SAMPLES))
        spelled = _spelled_out(network, samples)
        hypotheses, unread = find_coupled(spelled, example)
        proof = Proof(spelled, example, samples)
        proven, refused = proof.of_groups(hypotheses)
        groups = sorted(proven, key=lambda group: list(hypotheses).index(group.path))
        blocks, needed = proof.of_blocks(find_blocks(spelled, example), groups)
    except Exception as error:
        # Users' code and torch-pruning fail in many ways; what is not understood is left alone.
        LOG.debug("the network could not be read", exc_info=True)
        return Anatomy(network, declined={"": f"the network cannot be followed, by {told(error)}"})
    return Anatomy(
        spelled,
        {site_of(spelled, group.path): group for group in groups},
        {block.path: block for block in blocks},
        {site_of(spelled, path): why for path, why in (unread | refused | needed).items()},
    )


def _spelled_out(network: nn.Module, samples: Inputs) -> nn.Module:
    """A copy with attention spelled out, unless that would compute something else."""
    spelled = copy.deepcopy(network).eval()
    spell_out(spelled)
    return spelled if is_equal(network, spelled, samples) else copy.deepcopy(network).eval()


@lru_cache(maxsize=2)
def _seen(subject: Subject, samples: int) -> Moments:
    found = _studied(subject)
    rows = rows_of(subject.workload.calibration, samples)
    return second_moments(found.network, found.groups.values(), rows)


@lru_cache(maxsize=4)
def _scored(subject: Subject, criterion: Criterion, samples: int) -> Scores:
    found = _studied(subject)
    rows = rows_of(subject.workload.calibration, samples)
    groups = list(found.groups.values())
    return importance(criterion, found.network, groups, rows, _seen(subject, samples))
