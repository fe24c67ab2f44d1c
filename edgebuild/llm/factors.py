"""Stores a matrix as two thin ones: W ≈ second · first, where that takes fewer bytes for less loss.

The truncated singular value decomposition of the matrix with its inputs scaled by how large they
are on a text, which makes the error of the outputs small and not that of the weights (ASVD, arXiv
2312.05821).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgebuild.llm._kernels_numpy import Floats
from edgebuild.llm.checkpoint import Checkpoint, read_header
from edgebuild.llm.forward import Forward
from edgebuild.llm.network import read_network
from edgebuild.llm.reduction import MULTIPLE
from edgebuild.llm.rows import open_rows
from edgebuild.llm.save import WEIGHTS, Planned, write_tensors
from edgebuild.llm.sites import Rounding, Site, places, rounded, rounding_of
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.decoder import Role, Weights
from edgebuild.vocabulary.errors import InvalidCheckpoint
from edgebuild.vocabulary.weight_format import WeightFormat

# How both factors are stored, and the shares of the bytes of the matrix, stored likewise, that they
# may take.
LAYOUT = WeightFormat.parse("int4-g32-asym")
SHARES = (0.85, 0.7, 0.55, 0.4)
# What one more matrix takes of the graph at most: its node, and where its arrays lie.
NODE = 1000
# Larger matrices take too long to decompose, and too much memory: 2048 x 2048 takes 0.2 GB.
MOST_ELEMENTS = 2**22
# Rows of the second factor that tell what rounding both loses.
SAMPLE = 256
ENDING = ".weight"
Wide = NDArray[np.float64]


@dataclass(frozen=True)
class Decomposed:
    """A matrix [outputs, inputs], its inputs' scales, and what lies in its smaller side's basis.

    `basis` are columns in the order of `energies`, the squared singular values, largest first.
    """

    matrix: Floats
    scales: Wide
    basis: Wide
    energies: Wide

    def lost(self, rank: int) -> float:
        """The share of the weighted square that a rank leaves out."""
        return float(self.energies[rank:].sum() / max(self.energies.sum(), 1e-30))

    def factors(self, rank: int) -> tuple[Floats, Floats]:
        """The first [rank, inputs] and the second [outputs, rank]."""
        some = self.basis[:, :rank]
        outputs, inputs = self.matrix.shape
        if outputs <= inputs:
            first, second = some.T @ self.matrix, some
        else:
            first, second = some.T / self.scales, (self.matrix * self.scales) @ some
        return first.astype(np.float32), second.astype(np.float32)


def decompose(name: str, checkpoint: Checkpoint, importance: Floats) -> Decomposed:
    """By the eigenvalues of the smaller of its two Gram matrices.

    Raises:
        InvalidCheckpoint: a weight that is not finite.
    """
    with open_rows(name, checkpoint.tensors) as rows:
        stored = np.empty(rows.shape, np.float32)
        rows.read(0, stored)
    if not np.isfinite(stored).all():
        raise InvalidCheckpoint(f"{checkpoint.tensors[name].file}: {name} is not finite")
    scales = np.sqrt(np.maximum(importance.astype(np.float64), 1e-12))
    scaled = stored * scales
    gram = scaled @ scaled.T if len(stored) <= stored.shape[1] else scaled.T @ scaled
    del scaled
    values, vectors = np.linalg.eigh(gram)
    return Decomposed(stored, scales, vectors[:, ::-1], np.maximum(values[::-1], 0.0))


def offered(
    sites: Sequence[Site],
    checkpoint: Checkpoint,
    importances: Mapping[str, Floats],
    progress: Progress,
) -> tuple[Site, ...]:
    """With factors among what matrices of layers can be stored as."""
    found = []
    with progress.step("see what factors lose", len(sites)) as bar:
        for site, (weights, _) in zip(sites, places(checkpoint.decoder), strict=True):
            more: list[Rounding] = []
            ranks = _ranks(weights) if _is_offered(weights, site) else []
            if ranks:
                decomposed = decompose(site.names[0], checkpoint, importances[site.names[0]])
                more = [_rounding(decomposed, weights, rank) for rank in ranks]
            found.append(replace(site, roundings=(*site.roundings, *more)))
            bar.advance()
    return tuple(found)


def factorized(
    forward: Forward, ranks: Mapping[str, int], importances: Mapping[str, Floats], folder: Path
) -> Forward:
    """The network with factors in place of matrices; these lie in a file of the folder.

    `ranks` go by the matrices' names.
    """
    whole = forward.checkpoint
    if not ranks:
        return forward
    planned = []
    for name, rank in ranks.items():
        outputs, inputs = whole.tensors[name].read_shape
        first, second = names_of(name)
        planned += [Planned(first, "F32", (rank, inputs)), Planned(second, "F32", (outputs, rank))]
    folder.mkdir()
    file = folder / WEIGHTS

    def values() -> Iterator[Sequence[Floats]]:
        for name, rank in ranks.items():
            first, second = decompose(name, whole, importances[name]).factors(rank)
            yield [first]
            yield [second]

    write_tensors(folder, planned, values())
    # A conversion that was cut off goes on: the same factors are made again.
    os.utime(file, (0, 0))
    made = {each.name: each for each in read_header(file)}
    kept = {name: each for name, each in whole.tensors.items() if name not in ranks}
    decoder = replace(whole.decoder, weights=tuple(_weights(whole, ranks)))
    found = replace(whole, decoder=decoder, tensors={**kept, **made})
    return Forward(found, read_network(found))


def names_of(name: str) -> tuple[str, str]:
    """Of the factors of "….up_proj.weight", in the order in which they multiply."""
    own = name.removesuffix(ENDING)
    return f"{own}.first{ENDING}", f"{own}.second{ENDING}"


def _is_offered(weights: Weights, site: Site) -> bool:
    is_matrix = weights.role is Role.MATRIX and len(site.names) == 1
    return is_matrix and site.layer is not None and weights.elements <= MOST_ELEMENTS


def _ranks(weights: Weights) -> list[int]:
    outputs, inputs = weights.outputs, weights.inputs
    ranks = (
        int(share * outputs * inputs / (outputs + inputs) / MULTIPLE) * MULTIPLE for share in SHARES
    )
    return [rank for rank in dict.fromkeys(ranks) if 0 < rank < min(outputs, inputs)]


def _rounding(decomposed: Decomposed, weights: Weights, rank: int) -> Rounding:
    """What is left out, and what rounding both factors loses, seen on some of the rows."""
    first, second = decomposed.factors(rank)
    some = np.unique(np.linspace(0, len(second) - 1, min(SAMPLE, len(second)), dtype=np.int64))
    whole = decomposed.matrix[some] * decomposed.scales
    made = rounded(second[some], LAYOUT) @ rounded(first, LAYOUT) * decomposed.scales
    lost = float(np.square(made - whole).sum() / max(np.square(whole).sum(), 1e-30))
    parts = [
        rounding_of(replace(weights, outputs=outputs, inputs=inputs), 1, LAYOUT, lost)
        for outputs, inputs in ((rank, weights.inputs), (weights.outputs, rank))
    ]
    stored, read = (sum(side) for side in zip(*((p.stored, p.read) for p in parts), strict=True))
    return Rounding(LAYOUT, lost, stored + NODE, read, rank)


def _weights(whole: Checkpoint, ranks: Mapping[str, int]) -> Iterator[Weights]:
    """As before, and of each matrix that has factors these instead."""
    for each in whole.decoder.weights:
        names = [name for name, _ in each.names()]
        if not any(name in ranks for name in names):
            yield each
            continue
        for layer, name in zip(each.layers, names, strict=True):
            own = replace(each, layers=range(layer, layer + 1))
            if name not in ranks:
                yield own
                continue
            first, second = names_of(each.name)
            yield replace(own, name=first, outputs=ranks[name])
            yield replace(own, name=second, inputs=ranks[name], norm="")
