"""Runs a network on copies of its inputs, and compares what two networks put out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgebuild.vocabulary.workload import Split

Inputs = tuple[Tensor, ...]
# How far outputs may be apart, as a share of the largest: rounding errors, no wrong channel.
TOLERANCES = {torch.float64: 1e-7, torch.float32: 1e-3}


def run(network: nn.Module, inputs: Inputs) -> list[Tensor]:
    """All tensors that a network puts out, without gradients."""
    with torch.no_grad():
        return answer(network, inputs)


def answer(network: nn.Module, inputs: Inputs) -> list[Tensor]:
    """All tensors that a network puts out; inputs are copied, as networks may write into them."""
    # The fast path of nn.TransformerEncoder computes other values at padded places.
    is_fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        outputs = network(*(tensor.clone() for tensor in inputs))
    finally:
        torch.backends.mha.set_fastpath_enabled(is_fast)
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def is_equal(one: nn.Module, other: nn.Module, inputs: Inputs) -> bool:
    """Whether two networks compute the same, up to rounding errors."""
    return all(map(is_close, run(one, inputs), run(other, inputs)))


def shapes(outputs: Sequence[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(output.shape) for output in outputs]


def is_close(wanted: Tensor, got: Tensor) -> bool:
    if wanted.shape != got.shape:
        return False
    if not wanted.is_floating_point():
        return torch.equal(wanted, got)
    scale = wanted.abs().nan_to_num().max() if wanted.numel() else torch.tensor(0.0)
    tolerance = float(scale) * TOLERANCES.get(wanted.dtype, 1e-2) + 1e-12
    return torch.allclose(got, wanted, rtol=0.0, atol=tolerance, equal_nan=True)


def rows_of(split: Split, count: int) -> list[Inputs]:
    """At most so many samples of batch 1, at even distances: splits may be sorted."""
    items = _evenly(split, count)
    each = -(-count // max(len(items), 1))
    rows = []
    for inputs, _ in items:
        tensors = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
        for number in _spread(len(tensors[0]), each):
            rows.append(tuple(tensor[number : number + 1] for tensor in tensors))
    return [rows[number] for number in _spread(len(rows), count)]


def batch(rows: Sequence[Inputs]) -> Inputs:
    """Samples as one, joined along the batch."""
    return tuple(torch.cat(column) for column in zip(*rows, strict=True))


def _evenly(split: Split, count: int) -> list[Any]:
    if isinstance(split, Sized) and hasattr(split, "__getitem__"):
        return [split[number] for number in _spread(len(split), count)]
    assert isinstance(split, Iterable)
    numbers = set(_spread(sum(1 for _ in split), count))
    return [item for number, item in enumerate(split) if number in numbers]


def _spread(total: int, count: int) -> list[int]:
    taken = min(total, count)
    return [number * total // taken for number in range(taken)]
