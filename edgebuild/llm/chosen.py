"""What was chosen for a decoder on a text: layouts, factors, and what is taken out; and its result.

Where a limit leaves few bits, layers, feed-forward widths and ranks are choices beside the bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from edgebuild.llm._knapsack import MOST_REMOVED
from edgebuild.llm.calibrate import Seen
from edgebuild.llm.factors import factorized, names_of, offered
from edgebuild.llm.forward import Forward
from edgebuild.llm.importance import Importances
from edgebuild.llm.limit import Limit
from edgebuild.llm.matrices import Costs
from edgebuild.llm.mix import Layouts
from edgebuild.llm.mixed import Mixed
from edgebuild.llm.reduced import SHARES, choose_reduced, is_tight
from edgebuild.llm.reduction import NOTHING, Reduction, reduce
from edgebuild.llm.sensitivity import Reference, sensitivities
from edgebuild.llm.sequences import Tokens
from edgebuild.llm.sites import CHOICES, is_possible, layer_of, places, survey, weighed
from edgebuild.llm.store import stored_size
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.decoder import Decoder
from edgebuild.vocabulary.errors import InvalidQuantity
from edgebuild.vocabulary.units import format_size

T = TypeVar("T")


@dataclass(frozen=True)
class Chosen:
    """How tensors are stored, what is known of what that costs, and what is taken out."""

    layouts: Layouts
    costs: Costs = field(default_factory=Costs)
    reduction: Reduction = NOTHING

    @property
    def ranks(self) -> Mapping[str, int]:
        """Of matrices that become two factors."""
        return self.layouts.ranks if isinstance(self.layouts, Mixed) else {}

    @property
    def changes_network(self) -> bool:
        return bool(self.reduction or self.ranks)


def refuse_hopeless(decoder: Decoder, limit: Limit) -> None:
    """Before anything is measured, which may take hours: by shapes alone, and with a margin.

    Raises:
        InvalidQuantity: not even half of the layers keep the limit, half as wide and in the fewest
            bits.
    """
    least = float(limit.apart)
    for weights, names in places(decoder):
        possible = (each for each in CHOICES if is_possible(weights, each))
        size = len(names) * min(stored_size(weights, layout) for layout in possible)
        is_in_layer = layer_of(names[0][0]) is not None
        least += size * (1 - MOST_REMOVED) * min(SHARES) if is_in_layer else size
    if limit.size < least:
        raise InvalidQuantity(
            f"{format_size(limit.size)} are too few for {decoder.name}: even half of its layers, "
            f"half as wide and in the fewest bits, take {format_size(least)} with all else"
        )


def choose_on_text(
    forward: Forward,
    sequences: Tokens,
    limit: Limit,
    importances: Importances,
    seen: Seen,
    progress: Progress,
) -> Chosen:
    """What loses least on some text within a limit of bytes.

    Raises:
        InvalidQuantity: the limit is too small.
    """
    checkpoint = forward.checkpoint
    sites = survey(checkpoint, importances, progress, is_searched=True)
    if is_tight(sites, limit):
        sites = offered(sites, checkpoint, seen.importances, progress)
    reference = Reference(forward, sequences)
    found = sensitivities(reference, importances, progress)
    sites = weighed(sites, found)
    mixed, reduction = choose_reduced(sites, limit, reference, seen.importances, progress)
    return Chosen(mixed, Costs(found, mixed.losses), reduction)


def left_of(whole: Forward, chosen: Chosen, seen: Seen, folder: Path) -> tuple[Forward, Chosen]:
    """The network that is left, and the same choice by its tensors' names.

    Factors lie in the folder, which must be there as long as the network is.
    """
    rest = reduce(whole, chosen.reduction)
    own = _named_by(chosen, rest.originals)
    inputs = _renamed(seen.importances, rest.originals)
    return factorized(rest.forward, own.ranks, inputs, folder), _with_factors(own)


def _named_by(chosen: Chosen, originals: Mapping[str, str]) -> Chosen:
    layouts, costs = chosen.layouts, chosen.costs
    assert isinstance(layouts, Mixed)
    mixed = replace(
        layouts,
        layouts=_renamed(layouts.layouts, originals),
        ranks=_renamed(layouts.ranks, originals),
    )
    told = Costs(_renamed(costs.sensitivities, originals), _renamed(costs.losses, originals))
    return replace(chosen, layouts=mixed, costs=told)


def _with_factors(chosen: Chosen) -> Chosen:
    """With what is known of a matrix told of its factors; what it costs, of the first."""
    assert isinstance(chosen.layouts, Mixed)
    layouts, losses = dict(chosen.layouts.layouts), dict(chosen.costs.losses)
    sensitivities = dict(chosen.costs.sensitivities)
    for name in chosen.ranks:
        first, second = names_of(name)
        layouts[first] = layouts[second] = layouts.pop(name)
        losses[first], losses[second] = losses.pop(name), 0.0
        sensitivities[first] = sensitivities[second] = sensitivities.pop(name)
    mixed = replace(chosen.layouts, layouts=layouts)
    return replace(chosen, layouts=mixed, costs=Costs(sensitivities, losses))


def _renamed(values: Mapping[str, T], originals: Mapping[str, str]) -> dict[str, T]:
    """Values by new names, of those that have an old one."""
    return {new: values[old] for new, old in originals.items() if old in values}
