"""Gives every matrix its own bits and block: the least loss under a limit on bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgebuild.llm._knapsack import Knapsack
from edgebuild.llm.limit import Limit
from edgebuild.llm.mix import KEPT
from edgebuild.llm.sites import LayerChoice, Site
from edgebuild.vocabulary.decoder import Weights
from edgebuild.vocabulary.errors import InvalidQuantity
from edgebuild.vocabulary.units import Bytes, format_size
from edgebuild.vocabulary.weight_format import WeightFormat


@dataclass(frozen=True)
class Mixed:
    """A layout for each tensor by its name; floats for all others.

    `losses` are the sites', by the name of the first tensor, `reduced` are those of layers that go
    or narrow, and `loss` is the sum of all. `ranks` are those of tensors that become two factors.
    """

    layouts: Mapping[str, WeightFormat]
    losses: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    reduced: Mapping[LayerChoice, float] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        return sum(self.losses.values()) + sum(self.reduced.values())

    def of(self, weights: Weights, name: str, /) -> WeightFormat:
        return self.layouts.get(name, KEPT)

    def __str__(self) -> str:
        parts = [f"{count} {layout}" for layout, count in self.counts.items()]
        shares: dict[float, list[int]] = {}
        for each in sorted(self.reduced):
            shares.setdefault(each.share, []).append(each.layer)
        for share, layers in sorted(shares.items()):
            what = f"{share:.0%} of the channels in" if share else "without"
            parts.append(f"{what} layers {', '.join(map(str, layers))}")
        return ", ".join(parts)


def choose(
    sites: Sequence[Site],
    limit: Limit,
    reductions: Mapping[LayerChoice, float] | None = None,
) -> Mixed:
    """One rounding a site: the least loss whose bytes keep the limit.

    Args:
        reductions: what may be done to layers, and what it costs.

    Raises:
        InvalidQuantity: even the smallest choices take more.
    """
    knapsack = Knapsack(sites, limit.counted, reductions or {})
    least = Bytes(knapsack.least + limit.apart)
    if least > limit.size:
        raise InvalidQuantity(
            f"{format_size(limit.size)} {limit.counted} are too few: the smallest choices take "
            f"{format_size(least)}"
        )
    roundings, reduced = knapsack.solve(limit.left)
    layouts, counts, losses, ranks = {}, dict[str, int](), {}, {}
    for at, rounding in sorted(roundings.items()):
        names = sites[at].names
        layouts.update(dict.fromkeys(names, rounding.layout))
        shown = f"factors in {rounding.layout}" if rounding.rank else str(rounding.layout)
        counts[shown] = counts.get(shown, 0) + len(names)
        losses[names[0]] = rounding.loss
        if rounding.rank:
            ranks[names[0]] = rounding.rank
    return Mixed(layouts, losses, counts, reduced, ranks)
