"""Gives batch normalizations the statistics of what comes to them now that the network is another.

Jordan et al., REPAIR, arXiv 2211.08403; of pruned networks Li et al., EagleEye, arXiv 2007.02491.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from edgebuild.methods._batch_norm_statistics import referable
from edgebuild.methods._distill_data import Rows, open_rows
from edgebuild.methods._distill_loss import leaves, read_output
from edgebuild.methods._kept_memory import kept_memory
from edgebuild.vocabulary.workload import Workload

LOG = logging.getLogger(__name__)
# Statistics of fewer samples than this are worse than those of the network before it was changed.
FEWEST = 8
# So many samples tell them, as every position of a feature map counts.
MOST_SAMPLES = 128
# How many samples are normalized together: fewer where they are large, in bytes.
TOGETHER, BYTES_TOGETHER = 32, 64e6

Batch = tuple[Tensor, ...]


def repaired(network: nn.Module, workload: Workload) -> nn.Module:
    """A copy of a changed network, whose channels have the mean and the variance again that were.

    Weights stay as they are: BatchNorms hold the statistics of the calibration split as it comes
    through the changed network. It is the network itself that has none, whose samples are too few
    or cannot be joined, or whose answers come no nearer to those of the workload's.
    """
    norms = referable(network)
    if not norms:
        return network
    calibration = open_rows(workload.calibration, workload.example, "calibration")
    with calibration as rows, kept_memory():
        if len(rows) < FEWEST:
            return network
        changed = copy.deepcopy(network).eval()
        try:
            _follow(changed, _batches(rows))
            some = next(_batches(rows))
            after, before = (_distance(one, workload.network, some) for one in (changed, network))
        except Exception:
            # Users' code that takes one sample at a time fails in many ways.
            LOG.debug("the statistics could not be taken", exc_info=True)
            return network
    return changed if after < before else network


def _batches(rows: Rows) -> Iterator[Batch]:
    """Some rows together, in an order that mixes them: splits may be sorted."""
    numbers = np.random.default_rng(0).permutation(rows.evenly(MOST_SAMPLES))
    size = sum(array[0].nbytes for array in rows.inputs)
    together = min(max(int(BYTES_TOGETHER / size), FEWEST), TOGETHER)
    for some in np.array_split(numbers, math.ceil(len(numbers) / together)):
        yield rows.take(some)


@torch.no_grad()
def _follow(network: nn.Module, batches: Iterable[Batch]) -> None:
    norms = list(referable(network).values())
    with from_the_first(norms):
        for norm in norms:
            norm.train()
        for inputs in batches:
            network(*(tensor.clone() for tensor in inputs))
    network.eval()


@torch.no_grad()
def _distance(network: nn.Module, teacher: nn.Module, inputs: Batch) -> float:
    """How far the answers to some samples are from another network's."""
    pairs = zip(*(_answers(one, inputs) for one in (network, teacher)), strict=True)
    return sum(float(read_output(known, None).distance(given, known)) for given, known in pairs)


def _answers(network: nn.Module, inputs: Batch) -> list[Tensor]:
    return leaves(network(*(tensor.clone() for tensor in inputs)))


def batch_norms(network: nn.Module) -> list[BatchNorm]:
    return [module for module in network.modules() if isinstance(module, BatchNorm)]


@contextmanager
def from_the_first(norms: Sequence[BatchNorm]) -> Iterator[None]:
    """Forgets the statistics, and lets them be the average of all batches that come."""
    with former_momenta(norms):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        yield


@contextmanager
def former_momenta(norms: Sequence[BatchNorm]) -> Iterator[None]:
    """Gives them back afterwards."""
    momenta = [norm.momentum for norm in norms]
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
