"""What can be chosen for each matrix of a decoder, and what each choice loses and takes.

A site is a matrix of one layer, with all its experts. What a choice loses there is taken to be the
squared error of the matrix relative to itself, weighted by how much its inputs count, times the
site's sensitivity: the divergence of the outputs is nearly linear in these (arXiv 2411.17525). The
sensitivities are one unless they are measured on a text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edgebuild.llm._kernels_numpy import Floats
from edgebuild.llm.checkpoint import FLOAT_METHODS, Checkpoint
from edgebuild.llm.importance import Importances
from edgebuild.llm.mix import KEPT
from edgebuild.llm.quantize import dequantize, quantize
from edgebuild.llm.rows import open_rows
from edgebuild.llm.store import Entry, stored_size
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.decoder import Decoder, Role, Weights
from edgebuild.vocabulary.errors import InvalidCheckpoint
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
# The layer that a tensor belongs to, and its name there.
LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
# All of a feed-forward part's channels.
ALL = 1.0


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


def survey(
    checkpoint: Checkpoint,
    importances: Importances,
    progress: Progress,
    choices: Sequence[WeightFormat] = CHOICES,
    *,
    is_searched: bool = False,
    most: int | None = None,
) -> tuple[Site, ...]:
    """What every choice would lose and take at every site, from a sample of its rows.

    Args:
        is_searched: whether scales will be searched for by the importances, too.
        most: how many of the choices a site gets: the first ones that it can have.

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
            possible = [layout for layout in choices if is_possible(weights, layout)][:most]
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


def is_possible(weights: Weights, layout: WeightFormat) -> bool:
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
    read = layout.size(weights.outputs, weights.inputs) * weights.read
    return Rounding(layout, loss, stored_size(weights, layout) * count, read)
