"""What layers see of the calibration samples: the second moments of their inputs."""

from __future__ import annotations

import tempfile
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgebuild.cache import Cache
from edgebuild.methods._own_layers import Layer, OwnLayer, Tensors, own_layers, run, watching
from edgebuild.methods._subject import Subject
from edgebuild.samples import StoredSamples, store_split
from edgebuild.vocabulary.errors import MethodFailed
from edgebuild.vocabulary.workload import Workload

# Patches of a large image are much alike: so many of each sample tell enough.
MOST_PATCHES = 1024
BYTES_OF_MOMENTS = 1e9
# What is kept for a next change of the same network.
BYTES_TO_KEEP = 2.5e8


@dataclass(frozen=True)
class Samples:
    """Stored calibration samples, of which a limited number is read, at even distances."""

    stored: StoredSamples
    limit: int

    def __iter__(self) -> Iterator[Tensors]:
        for row in self.stored.rows(self.limit):
            yield tuple(map(torch.tensor, row))


@contextmanager
def calibration(workload: Workload, limit: int) -> Iterator[Samples]:
    """At most so many of the workload's calibration samples, to be read as often as needed.

    Raises:
        InvalidWorkload: an empty split, or a sample that is not shaped like the example.
    """
    split = workload.calibration
    if isinstance(split, StoredSamples):
        yield Samples(split, limit)
        return
    with tempfile.TemporaryDirectory(prefix="edgebuild-") as folder:
        cache = Cache(Path(folder))
        yield Samples(store_split(split, workload.example, "calibration", cache), limit)


def second_moments(
    network: nn.Module, layers: Mapping[str, OwnLayer], samples: Samples
) -> Iterator[tuple[str, Tensor]]:
    """The mean of x xᵀ over all patches x that a layer reads: (n, n), summed in double precision.

    n is the number of inputs × kernel. As many layers at a time as memory allows: the samples may
    go through the network more than once.

    Raises:
        MethodFailed: a layer that no sample reaches.
    """
    for group in _fitting_memory(layers, BYTES_OF_MOMENTS):
        found = _moments(network, group, samples)
        yield from ((path, _reached(path, found)) for path in group)


def kept_moments(
    workload: Workload, paths: Container[str], limit: int
) -> Iterator[tuple[str, Tensor]]:
    """The `second_moments` of the workload's own network at these paths.

    A search changes that network at one layer after the other, and asks anew every time: layers
    that fit into memory together are seen together, and kept until others are asked for.

    Raises:
        InvalidWorkload: an empty split, or a sample that is not shaped like the example.
        MethodFailed: a layer that no sample reaches.
    """
    subject = Subject(workload.network, workload)
    layers = own_layers(workload.network, workload.example)
    dense = {path: layer for path, layer in layers.items() if layer.shape.groups == 1}
    for group in _fitting_memory(dense, BYTES_TO_KEEP):
        for path in group:
            if path in paths:
                yield path, _reached(path, _kept(subject, tuple(group), limit))


@lru_cache(maxsize=1)
def _kept(subject: Subject, paths: tuple[str, ...], limit: int) -> Mapping[str, Tensor]:
    workload = subject.workload
    layers = own_layers(workload.network, workload.example)
    with calibration(workload, limit) as samples:
        return _moments(workload.network, {path: layers[path] for path in paths}, samples)


def _reached(path: str, found: Mapping[str, Tensor]) -> Tensor:
    if path not in found:
        raise MethodFailed(f"{path}: no calibration sample goes through it")
    return found[path]


def patches(layer: Layer, value: Tensor) -> Tensor:
    """What rows of the weights are multiplied with, (positions, n), with the padding's zeros.

    The n numbers of a patch have the order of the weights: inputs, then kernel.
    """
    if isinstance(layer, nn.Linear):
        return value.reshape(-1, value.shape[-1])
    images = value.reshape(-1, *value.shape[-3:])
    padded = functional.pad(images, layer._reversed_padding_repeated_twice)
    found = functional.unfold(
        padded, layer.kernel_size, dilation=layer.dilation, stride=layer.stride
    )
    return found.transpose(1, 2).flatten(0, 1)


def _fitting_memory(layers: Mapping[str, OwnLayer], most: float) -> Iterator[dict[str, OwnLayer]]:
    group: dict[str, OwnLayer] = {}
    held = 0
    for path, layer in layers.items():
        size = 8 * layer.patch**2
        if group and held + size > most:
            yield group
            group, held = {}, 0
        group[path] = layer
        held += size
    if group:
        yield group


def _moments(
    network: nn.Module, layers: Mapping[str, OwnLayer], samples: Samples
) -> dict[str, Tensor]:
    """Those of the layers that samples reach."""
    moments = {path: _Moment(layer.patch) for path, layer in layers.items()}
    ahead: set[str] = set()

    def see(path: str, value: Tensor) -> None:
        moments[path].add(patches(layers[path].module, value))
        ahead.discard(path)
        if not ahead:
            raise _SeenEnough

    with watching({path: layer.module for path, layer in layers.items()}, see):
        for inputs in samples:
            ahead.update(layers)
            with suppress(_SeenEnough):
                run(network, inputs)
    return {path: moment.mean() for path, moment in moments.items() if moment.count}


class _Moment:
    """Sums up x xᵀ of rows x; a thousand rows at a time, as every sum writes all n² numbers."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self._total = torch.zeros(size, size, dtype=torch.float64)
        self._waiting: list[Tensor] = []
        # A chance of its own: which layers are seen together changes nothing.
        self._chance = torch.Generator().manual_seed(0)

    def add(self, rows: Tensor) -> None:
        rows = _some(rows, self._chance)
        self.count += len(rows)
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= MOST_PATCHES:
            self._flush()

    def mean(self) -> Tensor:
        self._flush()
        return self._total / self.count

    def _flush(self) -> None:
        if self._waiting:
            rows = torch.cat(self._waiting)
            # Halves are too short for sums.
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            self._total += rows.T @ rows
            self._waiting.clear()


class _SeenEnough(BaseException):
    """The rest of the network need not run; no exception, which the network's code might catch."""


def _some(rows: Tensor, chance: torch.Generator) -> Tensor:
    if len(rows) <= MOST_PATCHES:
        return rows
    return rows[torch.randperm(len(rows), generator=chance)[:MOST_PATCHES]]
