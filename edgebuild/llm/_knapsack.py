"""Solves which rounding each site gets, and what becomes of each layer, as an integer program."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from edgebuild.llm.limit import Counted
from edgebuild.llm.sites import ALL, LayerChoice, Rounding, Site
from edgebuild.vocabulary.units import Bytes

# Losses are not known to a percent, so no better solution is worth waiting for.
GAP = 0.01
TIME_LIMIT = 20.0
# Nobody has seen a network of which less is left say anything, unless it was trained again.
MOST_REMOVED = 0.5


@dataclass(frozen=True)
class Knapsack:
    """A binary for each rounding of each site, and for what becomes of each layer."""

    sites: Sequence[Site]
    counted: Counted
    reductions: Mapping[LayerChoice, float]

    @cached_property
    def choices(self) -> Mapping[int, Sequence[LayerChoice]]:
        """Of layers that something may be done to: also to leave them as they are."""
        found = {each.layer: [LayerChoice(each.layer, ALL)] for each in self.reductions}
        for each in self.reductions:
            found[each.layer].append(each)
        return found

    @property
    def most_removed(self) -> int:
        layers = {site.layer for site in self.sites if site.layer is not None}
        return int(MOST_REMOVED * len(layers))

    @property
    def least(self) -> int:
        return sum(self._bytes(rounding) for rounding in self.smallest[0].values())

    @cached_property
    def smallest(self) -> tuple[dict[int, Rounding], dict[LayerChoice, float]]:
        """The choices that take the fewest bytes: narrow layers, and the largest of them gone."""
        picked: dict[int, Rounding] = {}
        reduced: list[LayerChoice] = []
        taken: dict[int, int] = {}
        for layer in dict.fromkeys(site.layer for site in self.sites):
            places = [at for at, site in enumerate(self.sites) if site.layer == layer]
            options = []
            for choice in self._staying(self.sites[places[0]]):
                share = choice.share if choice else ALL
                some = {at: min(self.sites[at].at(share), key=self._bytes) for at in places}
                options.append((sum(map(self._bytes, some.values())), choice, some))
            size, choice, some = min(options, key=lambda option: option[0])
            picked |= some
            if choice and choice.share != ALL:
                reduced.append(choice)
            if layer is not None:
                taken[layer] = size
        may_go = {each.layer: each for each in self.reductions if each.goes}
        largest = sorted(may_go, key=lambda layer: taken.get(layer, 0), reverse=True)
        gone = largest[: self.most_removed]
        kept = {at: one for at, one in picked.items() if self.sites[at].layer not in gone}
        left = [each for each in reduced if each.layer not in gone]
        chosen = [*left, *(may_go[layer] for layer in gone)]
        return kept, {each: self.reductions[each] for each in chosen}

    def solve(self, limit: Bytes) -> tuple[dict[int, Rounding], dict[LayerChoice, float]]:
        """The rounding of each site by its place, without those of layers that go."""
        choices = [each for some in self.choices.values() for each in some]
        columns: list[tuple[int, Rounding]] = []
        terms: list[tuple[int, int, float]] = []
        totals: list[float] = []

        def equation(some: Iterable[tuple[int, float]], total: float) -> None:
            terms.extend((len(totals), column, factor) for column, factor in some)
            totals.append(total)

        for layer in self.choices:
            equation(((at, 1.0) for at, each in enumerate(choices) if each.layer == layer), 1.0)
        for at, site in enumerate(self.sites):
            for given, roundings in self._cases(site):
                first = len(choices) + len(columns)
                columns += [(at, rounding) for rounding in roundings]
                picked = [(first + number, 1.0) for number in range(len(roundings))]
                unless = [(choices.index(each), -1.0) for each in given]
                equation([*picked, *unless], 0.0 if given else 1.0)
        losses = [self.reductions.get(each, 0.0) for each in choices]
        losses += [rounding.loss for _, rounding in columns]
        sizes, stored = (
            np.array([0.0] * len(choices) + [size(rounding) for _, rounding in columns])
            for size in (self._bytes, lambda rounding: rounding.stored)
        )
        # What is as good is taken smaller; the solver's tolerances want numbers near one.
        objective = np.array(losses) / max(*losses, 1e-30) + 1e-9 * stored / max(stored.max(), 1)
        at_row, at_column, factors = zip(*terms, strict=True)
        equations = csr_array((factors, (at_row, at_column)), shape=(len(totals), len(objective)))
        goes = [float(each.goes) for each in choices] + [0.0] * len(columns)
        found = milp(
            objective,
            integrality=np.ones(len(objective)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(equations, totals, totals),
                LinearConstraint(sizes[None] / max(limit, 1), 0, 1),
                LinearConstraint(np.array([goes]), 0, self.most_removed),
            ],
            options={"mip_rel_gap": GAP, "time_limit": TIME_LIMIT},
        )
        if found.x is None:
            return self.smallest
        # As near to one as the solver came.
        taken = found.x > 0.5
        reduced = {
            each: self.reductions[each]
            for each, is_taken in zip(choices, taken, strict=False)
            if is_taken and each.share != ALL
        }
        picks = zip(columns, taken[len(choices) :], strict=True)
        return {at: rounding for (at, rounding), is_taken in picks if is_taken}, reduced

    def _cases(self, site: Site) -> Iterator[tuple[Sequence[LayerChoice], tuple[Rounding, ...]]]:
        """Roundings of which one is picked if one of these choices is made; always without any."""
        staying = [each for each in self._staying(site) if each]
        if site.narrowed and staying:
            yield from (([each], site.at(each.share)) for each in staying)
        else:
            yield staying, site.roundings

    def _staying(self, site: Site) -> Sequence[LayerChoice | None]:
        """What may become of a site's layer but that it goes; None where nothing may."""
        some = self.choices.get(site.layer, ()) if site.layer is not None else ()
        return [each for each in some if not each.goes] or [None]

    def _bytes(self, rounding: Rounding) -> int:
        return rounding.stored if self.counted is Counted.STORED else rounding.read
