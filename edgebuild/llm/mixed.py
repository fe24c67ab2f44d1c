"""Gives every matrix its own bits and block: the least loss under a limit on bytes.

A site is a matrix of one layer, with all its experts. What a choice loses there is taken to be the
squared error of the matrix relative to itself, weighted by how much its inputs count, times the
site's sensitivity: the divergence of the outputs is nearly linear in these (arXiv 2411.17525). The
sensitivities are one unless they are measured on a text.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class Mixed:
    """A layout for each tensor by its name; floats for all others.

    `losses` are the sites', by the name of the first tensor, and `loss` is their sum.
    """

    layouts: Mapping[str, WeightFormat]
    losses: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        return sum(self.losses.values())

    def of(self, weights: Weights, name: str, /) -> WeightFormat:
        return self.layouts.get(name, KEPT)

    def __str__(self) -> str:
        return ", ".join(f"{count} {layout}" for layout, count in self.counts.items())


def survey(
    checkpoint: Checkpoint,
    importances: Importances,
    progress: Progress,
    choices: Sequence[WeightFormat] = CHOICES,
) -> tuple[Site, ...]:
    """What every choice would lose and take at every site, from a sample of its rows.

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
            losses = _losses(checkpoint, entry, importances.of(entry), possible)
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


def choose(sites: Sequence[Site], limit: Bytes, counted: Limit = Limit.STORED) -> Mixed:
    """One rounding a site: the least loss whose bytes keep the limit.

    Raises:
        InvalidQuantity: even the smallest choices take more.
    """
    least = sum(min(_bytes(r, counted) for r in site.roundings) for site in sites)
    if least > limit:
        raise InvalidQuantity(
            f"{format_size(limit)} {counted} are too few: the smallest choices take "
            f"{format_size(least)}"
        )
    picked = _solve(sites, limit, counted)
    layouts, counts = {}, dict[str, int]()
    for site, rounding in zip(sites, picked, strict=True):
        layouts.update(dict.fromkeys(site.names, rounding.layout))
        shown = str(rounding.layout)
        counts[shown] = counts.get(shown, 0) + len(site.names)
    losses = {site.names[0]: one.loss for site, one in zip(sites, picked, strict=True)}
    return Mixed(layouts, losses, counts)


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
) -> list[float]:
    """The weighted squared error of a sample, relative to the sample itself."""
    rows = _sample(checkpoint, entry.name)
    whole = float((np.square(rows) * importance).sum(dtype=np.float64)) or 1.0
    losses = []
    for layout in layouts:
        off = _rounded(rows, layout) - rows
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


def _rounded(rows: Floats, layout: WeightFormat) -> Floats:
    if layout.is_float:
        halves = rows.astype(np.float16 if layout.bits == 16 else np.float32)
        return halves.astype(np.float32)
    return dequantize(quantize(rows, layout), layout, rows.shape[1])


def _rounding(weights: Weights, count: int, layout: WeightFormat, loss: float) -> Rounding:
    size = layout.size(weights.outputs, weights.inputs)
    return Rounding(layout, loss, size * count, size * weights.read)


def _bytes(rounding: Rounding, counted: Limit) -> int:
    return rounding.stored if counted is Limit.STORED else rounding.read


def _solve(sites: Sequence[Site], limit: Bytes, counted: Limit) -> list[Rounding]:
    """A binary column for each rounding; one is picked at each site, and their bytes add up."""
    columns = [(at, rounding) for at, site in enumerate(sites) for rounding in site.roundings]
    sizes = np.array([_bytes(rounding, counted) for _, rounding in columns], np.float64)
    losses = np.array([rounding.loss for _, rounding in columns])
    # What is as good is taken smaller; the solver's tolerances want numbers near one.
    stored = np.array([rounding.stored for _, rounding in columns], np.float64)
    objective = losses / max(losses.max(), 1e-30) + 1e-9 * stored / max(stored.max(), 1.0)
    one_each = csr_array(
        (np.ones(len(columns)), ([at for at, _ in columns], range(len(columns)))),
        shape=(len(sites), len(columns)),
    )
    share = sizes / max(limit, 1)
    found = milp(
        objective,
        integrality=np.ones(len(columns)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(share[None], 0, 1)],
        options={"mip_rel_gap": GAP, "time_limit": TIME_LIMIT},
    )
    if found.x is None:
        return [min(site.roundings, key=lambda one: _bytes(one, counted)) for site in sites]
    picked: list[Rounding] = [sites[0].roundings[0]] * len(sites)
    best = [-1.0] * len(sites)
    for (at, rounding), taken in zip(columns, found.x, strict=True):
        if taken > best[at]:
            best[at], picked[at] = float(taken), rounding
    return picked
