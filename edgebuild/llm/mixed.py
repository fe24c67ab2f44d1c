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


class Limit(StrEnum):
    """What bytes are counted: those in the file, or those that one token reads."""

    STORED = "stored"
    READ = "read"


@dataclass(frozen=True)
class Rounding:
    """One way to store a site."""

    layout: WeightFormat
    loss: float
    stored: int
    read: int


@dataclass(frozen=True)
class Site:
    """Tensors that are stored alike, with what there is to choose from."""

    names: tuple[str, ...]
    roundings: tuple[Rounding, ...]

    @property
    def layer(self) -> int | None:
        """None where the network has it once."""
        match = LAYER.fullmatch(self.names[0])
        return int(match[1]) if match else None


@dataclass(frozen=True)
class Mixed:
    """A layout for each tensor by its name; floats for all others.

    `losses` are the sites', by the name of the first tensor, and `loss` is the sum of all, those of
    layers that are left out among them.
    """

    layouts: Mapping[str, WeightFormat]
    losses: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    removals: Mapping[int, float] = field(default_factory=dict)

    @property
    def removed(self) -> tuple[int, ...]:
        """The layers that are left out."""
        return tuple(sorted(self.removals))

    @property
    def loss(self) -> float:
        return sum(self.losses.values()) + sum(self.removals.values())

    def of(self, weights: Weights, name: str, /) -> WeightFormat:
        return self.layouts.get(name, KEPT)

    def __str__(self) -> str:
        parts = [f"{count} {layout}" for layout, count in self.counts.items()]
        if self.removals:
            parts.append(f"without layers {', '.join(map(str, self.removed))}")
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
                _rounding(weights, len(names), layout, loss)
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
    removals: Mapping[int, float] | None = None,
) -> Mixed:
    """One rounding a site: the least loss whose bytes keep the limit.

    Args:
        removals: what leaving a layer out costs, by its number, where that may be done.

    Raises:
        InvalidQuantity: even the smallest choices take more.
    """
    removals = removals or {}
    most = int(MOST_REMOVED * len({site.layer for site in sites if site.layer is not None}))
    least = _least(sites, counted, removals, most)
    if least > limit:
        raise InvalidQuantity(
            f"{format_size(limit)} {counted} are too few: the smallest choices take "
            f"{format_size(least)}"
        )
    picked = _solve(sites, limit, counted, removals, most)
    layouts, counts, losses = {}, dict[str, int](), {}
    for site, rounding in zip(sites, picked, strict=True):
        if rounding is None:
            continue
        layouts.update(dict.fromkeys(site.names, rounding.layout))
        shown = str(rounding.layout)
        counts[shown] = counts.get(shown, 0) + len(site.names)
        losses[site.names[0]] = rounding.loss
    gone = {site.layer for site, rounding in zip(sites, picked, strict=True) if rounding is None}
    removed = {layer: cost for layer, cost in removals.items() if layer in gone}
    return Mixed(layouts, losses, counts, removed)


def _least(sites: Sequence[Site], counted: Limit, removals: Mapping[int, float], most: int) -> int:
    """The bytes of the smallest choices, without the largest layers that may go."""
    taken: dict[int | None, int] = {}
    for site in sites:
        size = min(_bytes(rounding, counted) for rounding in site.roundings)
        taken[site.layer] = taken.get(site.layer, 0) + size
    spared = sorted((taken.get(layer, 0) for layer in removals), reverse=True)
    return sum(taken.values()) - sum(spared[:most])


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
    """The weighted squared error of a sample, relative to the sample itself."""
    rows = _sample(checkpoint, entry.name)
    whole = float((np.square(rows) * importance).sum(dtype=np.float64)) or 1.0
    losses = []
    for layout in layouts:
        off = _rounded(rows, layout, importance if is_searched else None) - rows
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


def _rounded(rows: Floats, layout: WeightFormat, importance: Floats | None) -> Floats:
    if layout.is_float:
        halves = rows.astype(np.float16 if layout.bits == 16 else np.float32)
        return halves.astype(np.float32)
    return dequantize(quantize(rows, layout, importance), layout, rows.shape[1])


def _rounding(weights: Weights, count: int, layout: WeightFormat, loss: float) -> Rounding:
    size = layout.size(weights.outputs, weights.inputs)
    return Rounding(layout, loss, size * count, size * weights.read)


def _bytes(rounding: Rounding, counted: Limit) -> int:
    return rounding.stored if counted is Limit.STORED else rounding.read


def _solve(
    sites: Sequence[Site],
    limit: Bytes,
    counted: Limit,
    removals: Mapping[int, float],
    most: int,
) -> list[Rounding | None]:
    """A binary column for each rounding and each layer that may go, None for these.

    At each site one rounding is picked, unless its layer goes, and bytes add up.
    """
    columns = [(at, rounding) for at, site in enumerate(sites) for rounding in site.roundings]
    stored = [rounding.stored for _, rounding in columns] + [0] * len(removals)
    sizes = [_bytes(rounding, counted) for _, rounding in columns] + [0] * len(removals)
    losses = np.array([*(rounding.loss for _, rounding in columns), *removals.values()])
    # What is as good is taken smaller; the solver's tolerances want numbers near one.
    objective = losses / max(losses.max(), 1e-30) + 1e-9 * np.array(stored) / max(*stored, 1)
    places = [(at, number) for number, (at, _) in enumerate(columns)]
    for number, layer in enumerate(removals, len(columns)):
        places += [(at, number) for at, site in enumerate(sites) if site.layer == layer]
    one_each = csr_array(
        (np.ones(len(places)), tuple(zip(*places, strict=True))), shape=(len(sites), len(losses))
    )
    goes = np.arange(len(losses)) >= len(columns)
    share = np.array(sizes, np.float64) / max(limit, 1)
    found = milp(
        objective,
        integrality=np.ones(len(losses)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(share[None], 0, 1),
            LinearConstraint(goes.astype(np.float64)[None], 0, most),
        ],
        options={"mip_rel_gap": GAP, "time_limit": TIME_LIMIT},
    )
    if found.x is None:
        return [min(site.roundings, key=lambda one: _bytes(one, counted)) for site in sites]
    picked: list[Rounding | None] = [None] * len(sites)
    # Whatever is above a half was picked, as close to one as the solver came.
    for (at, rounding), taken in zip(columns, found.x, strict=False):
        if taken > 0.5:
            picked[at] = rounding
    return picked
