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
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from edgebuild.methods._batch_norm_statistics import referable
from edgebuild.methods._channel_runs import Inputs, batch, rows_of, run
from edgebuild.methods._distill_loss import leaves, read_output
from edgebuild.methods._kept_memory import kept_memory
from edgebuild.vocabulary.workload import Workload

LOG = logging.getLogger(__name__)
# Statistics of fewer samples than this are worse than those of the network before it was changed.
FEWEST_FOR_STATISTICS = 8
# So many samples tell them, as every position of a feature map counts.
MOST_SAMPLES = 128
# How many samples are normalized together: fewer where they are large, in bytes.
TOGETHER, BYTES_TOGETHER = 32, 64e6


def repaired(network: nn.Module, workload: Workload) -> nn.Module:
    """A copy of a changed network, whose channels have the mean and the variance again that were.

    Weights stay as they are: BatchNorms hold the statistics of the calibration split as it comes
    through the changed network. It is the network itself that has none, whose samples are too few
    or cannot be joined, or whose answers come no nearer to those of the workload's.
    """
    if not referable(network):
        return network
    rows = rows_of(workload.calibration, MOST_SAMPLES)
    if len(rows) < FEWEST_FOR_STATISTICS:
        return network
    some = next(_batches(rows))
    with kept_memory():
        try:
            wanted, given = (leaves(run(one, some)) for one in (workload.network, network))
        except Exception:
            # Users' code that takes one sample at a time fails in many ways.
            LOG.debug("the samples cannot be joined", exc_info=True)
            return network
        changed = copy.deepcopy(network).eval()
        _follow(changed, _batches(rows))
        is_nearer = _distance(leaves(run(changed, some)), wanted) < _distance(given, wanted)
    return changed if is_nearer else network


def _batches(rows: Sequence[Inputs]) -> Iterator[Inputs]:
    """Some rows together, in an order that mixes them: splits may be sorted."""
    order = np.random.default_rng(0).permutation(len(rows))
    size = sum(tensor.nbytes for tensor in rows[0])
    together = min(max(int(BYTES_TOGETHER / size), FEWEST_FOR_STATISTICS), TOGETHER)
    for some in np.array_split(order, math.ceil(len(order) / together)):
        yield batch([rows[number] for number in some])


def _follow(network: nn.Module, batches: Iterable[Inputs]) -> None:
    norms = list(referable(network).values())
    with from_the_first(norms):
        for norm in norms:
            norm.train()
        for inputs in batches:
            run(network, inputs)
    network.eval()


def _distance(given: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """How far a network's answers are from those that are wanted."""
    pairs = zip(given, wanted, strict=True)
    return sum(float(read_output(known, None).distance(ours, known)) for ours, known in pairs)


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
