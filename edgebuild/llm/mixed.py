"""Gives every matrix its own bits and block: the least loss under a limit on bytes.

A site is a matrix of one layer, with all its experts. What a choice loses there is taken to be the
squared error of the matrix relative to itself, weighted by how much its inputs count, times the
site's sensitivity: the divergence of the outputs is nearly linear in these (arXiv 2411.17525). The
sensitivities are one unless they are measured on a text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from edgebuild.llm._kernels_numpy import Floats
from edgebuild.llm.checkpoint import FLOAT_METHODS, Checkpoint
from edgebuild.llm.importance import Importances
from edgebuild.llm.mix import KEPT
from edgebuild.llm.quantize import dequantize, quantize
from edgebuild.llm.rows import open_rows
from edgebuild.llm.store import Entry
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.decoder import Decoder, Role, Weights
from edgebuild.vocabulary.errors import InvalidCheckpoint, InvalidQuantity
from edgebuild.vocabulary.units import Bytes, format_size
from edgebuild.vocabulary.weight_format import WeightFormat

CHOICES = tuple(
    map(
        WeightFormat.parse,
        (
            *("fp16", "int8-g32", "int8-g128", "int4-g16-asym", "int4-g32-asym"),
            *("int4-g64-asym", "int4-g128-asym", "int2-g16-asym", "int2-g32-asym"),
        ),
    )
)
# What is rounded of a matrix to see what its choices lose: spread over its rows.
SAMPLE = 2**17
SAMPLED_RUNS = 4
# Losses are not known to a percent, so no better solution is worth waiting for.
GAP = 0.01
TIME_LIMIT = 20.0
# Nobody has seen a network of which less is left say anything, unless it was trained again.
MOST_REMOVED = 0.5
# The layer that a tensor belongs to, and its name there.
LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
# All of a feed-forward part's channels.
ALL = 1.0


class Limit(StrEnum):
    """What bytes are counted: those in the file, or those that one token reads."""

    STORED = "stored"
    READ = "read"


@dataclass(frozen=True)
class Rounding:
    """One way to store a site: as it is, or with a rank as two factors in the layout."""

    layout: WeightFormat
    loss: float
    stored: int
    read: int
    rank: int = 0


@dataclass(frozen=True)
class Site:
    """Tensors that are stored alike, with what there is to choose from.

    `narrowed` is the same for shares of the channels, of feed-forward matrices that may narrow.
    """

    names: tuple[str, ...]
    roundings: tuple[Rounding, ...]
    narrowed: Mapping[float, tuple[Rounding, ...]] = field(default_factory=dict)

    @property
    def layer(self) -> int | None:
        """None where the network has it once."""
        return layer_of(self.names[0])

    def at(self, share: float) -> tuple[Rounding, ...]:
        """What there is to choose from at a share of the channels."""
        return self.roundings if share == ALL else self.narrowed.get(share, self.roundings)


@dataclass(frozen=True, order=True)
class LayerChoice:
    """What becomes of a layer: the share of its feed-forward channels that stays, 0 if it goes."""

    layer: int
    share: float

    @property
    def goes(self) -> bool:
        return self.share == 0


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


def survey(
    checkpoint: Checkpoint,
    importances: Importances,
    progress: Progress,
    choices: Sequence[WeightFormat] = CHOICES,
    *,
    is_searched: bool = False,
) -> tuple[Site, ...]:
    """What every choice would lose and take at every site, from a sample of its rows.

    Args:
        is_searched: whether scales will be searched for by the importances, too.

    Raises:
        InvalidCheckpoint: a checkpoint that is quantized already.
    """
    if checkpoint.method not in FLOAT_METHODS:
        raise InvalidCheckpoint(
            f"{checkpoint.path} is quantized by {checkpoint.method} already: bits can be chosen "
            "for floats alone"
        )
    found = []
    sites = list(places(checkpoint.decoder))
    with progress.step("see what rounding loses", len(sites)) as bar:
        for weights, names in sites:
            entry = Entry(names[0][0], weights.role, weights.shape, KEPT, (), names[0][1])
            possible = [layout for layout in choices if _is_possible(weights, layout)]
            losses = _losses(checkpoint, entry, importances.of(entry), possible, is_searched)
            roundings = (
                rounding_of(weights, len(names), layout, loss)
                for layout, loss in zip(possible, losses, strict=True)
            )
            found.append(Site(tuple(name for name, _ in names), tuple(roundings)))
            bar.advance()
    return tuple(found)


def weighed(sites: Iterable[Site], sensitivities: Mapping[str, float]) -> tuple[Site, ...]:
    """With losses times what a relative squared error of one costs at a site's first tensor.

    Where that is unknown, it is taken to be the median of all others.
    """
    usual = float(np.median(list(sensitivities.values()))) if sensitivities else 1.0
    return tuple(
        replace(
            site,
            roundings=tuple(
                replace(one, loss=one.loss * sensitivities.get(site.names[0], usual))
                for one in site.roundings
            ),
        )
        for site in sites
    )


def choose(
    sites: Sequence[Site],
    limit: Bytes,
    counted: Limit = Limit.STORED,
    reductions: Mapping[LayerChoice, float] | None = None,
) -> Mixed:
    """One rounding a site: the least loss whose bytes keep the limit.

    Args:
        reductions: what may be done to layers, and what it costs.

    Raises:
        InvalidQuantity: even the smallest choices take more.
    """
    knapsack = _Knapsack(sites, counted, reductions or {})
    if knapsack.least > limit:
        raise InvalidQuantity(
            f"{format_size(limit)} {counted} are too few: the smallest choices take "
            f"{format_size(knapsack.least)}"
        )
    roundings, reduced = knapsack.solve(limit)
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


def layer_of(name: str) -> int | None:
    """None of what the network has once."""
    match = LAYER.fullmatch(name)
    return int(match[1]) if match else None


def places(decoder: Decoder) -> Iterator[tuple[Weights, list[tuple[str, str]]]]:
    """Each layer's matrices, experts together, with their names and those of the norms before."""
    for weights in decoder.weights:
        if weights.role in (Role.VECTOR, Role.ROUTER):
            continue
        for layer in weights.layers:
            one = replace(weights, layers=range(layer, layer + 1))
            yield one, list(one.names())


def _is_possible(weights: Weights, layout: WeightFormat) -> bool:
    """Rows that are looked up must be whole blocks."""
    is_looked_up = weights.role is not Role.MATRIX
    return layout.is_float or not is_looked_up or weights.inputs % layout.block == 0


def _losses(
    checkpoint: Checkpoint,
    entry: Entry,
    importance: Floats,
    layouts: Sequence[WeightFormat],
    is_searched: bool,
) -> list[float]:
    """The weighted squared error of a sample, relative to the sample itself, in each layout."""
    rows = _sample(checkpoint, entry.name)
    whole = float((np.square(rows) * importance).sum(dtype=np.float64)) or 1.0
    losses = []
    for layout in layouts:
        try:
            off = rounded(rows, layout, importance if is_searched else None) - rows
        except ValueError as problem:
            file = checkpoint.tensors[entry.name].file
            raise InvalidCheckpoint(f"{file}: {entry.name}: {problem}") from None
        losses.append(float((np.square(off) * importance).sum(dtype=np.float64)) / whole)
    return losses


def _sample(checkpoint: Checkpoint, name: str) -> Floats:
    """A few runs of rows, from all over a matrix."""
    with open_rows(name, checkpoint.tensors) as rows:
        count, inputs = rows.shape
        each = min(max(1, SAMPLE // SAMPLED_RUNS // inputs), count)
        starts = np.unique(np.linspace(0, count - each, SAMPLED_RUNS, dtype=np.int64))
        found = np.empty((len(starts), each, inputs), np.float32)
        for start, out in zip(starts, found, strict=True):
            rows.read(int(start), out)
    return found.reshape(-1, inputs)


def rounded(rows: Floats, layout: WeightFormat, importance: Floats | None = None) -> Floats:
    """As floats again.

    Raises:
        ValueError: a weight is not finite, or too large for the scales.
    """
    if layout.is_float:
        halves = rows.astype(np.float16 if layout.bits == 16 else np.float32)
        return halves.astype(np.float32)
    return dequantize(quantize(rows, layout, importance), layout, rows.shape[1])


def rounding_of(weights: Weights, count: int, layout: WeightFormat, loss: float) -> Rounding:
    """Of so many tensors of a shape."""
    size = layout.size(weights.outputs, weights.inputs)
    return Rounding(layout, loss, size * count, size * weights.read)


# ---- the solver


@dataclass(frozen=True)
class _Knapsack:
    """A binary for each rounding of each site, and for what becomes of each layer."""

    sites: Sequence[Site]
    counted: Limit
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
        return rounding.stored if self.counted is Limit.STORED else rounding.read
