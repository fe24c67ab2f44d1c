"""torch-pruning's dependency graph, and walks over it that come to an end."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgebuild.methods._channel_groups import Unfit
from edgebuild.methods._channel_runs import Inputs

LOG = logging.getLogger(__name__)
# Counted one by one behind flattened maps, over a whole walk: VGG's has 25,088.
MOST_PLACES = 2**18


class NotFollowed(Unfit):
    """Channels that torch-pruning loses on their way to what reads them."""


def build_graph(network: nn.Module, example: Inputs) -> Any:
    """The graph of a network, whose parameters are left as they were."""
    flags = {parameter: parameter.requires_grad for parameter in network.parameters()}
    inputs = tuple(tensor.clone() for tensor in example)
    try:
        for parameter in flags:
            parameter.requires_grad_(parameter.is_floating_point())
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            return tp.DependencyGraph().build_dependency(
                network, inputs, output_transform=_differentiable, verbose=False
            )
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


def _differentiable(outputs: Any) -> list[Tensor]:
    leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return [leaf for leaf in leaves if leaf.grad_fn is not None]


def coupled_with(graph: Any, root: nn.Module, channels: Sequence[int]) -> Any:
    """torch-pruning's group of what goes with channels that a layer puts out.

    Raises:
        Unfit: its walk finds the same couplings anew for ever, as it does in some decoders, or
            counts places one by one that are too many, as behind the heads of detectors.
        NotFollowed: it fails, as at recurrent layers, which it sees as hundreds of operators.
    """
    handler = graph.get_pruner_of_module(root).prune_out_channels
    with _bounded(4 * sum(len(node.dependencies) for node in graph.module2node.values()) + 16):
        try:
            with warnings.catch_warnings():
                # As it gives up on what it unrolls; the reason is told in words.
                warnings.filterwarnings("ignore", "Maximum recursive depth reached")
                return graph.get_pruning_group(root, handler, list(channels))
        except Unfit:
            raise
        except Exception as error:
            LOG.debug("torch-pruning failed at %s", root, exc_info=True)
            raise NotFollowed(str(error)) from error


@contextmanager
def _bounded(most: int) -> Iterator[None]:
    """Ends walks of more couplings, and those that count too many places."""
    graph, mapping = tp.dependency.graph, tp.dependency.index_mapping._FlattenIndexMapping
    group, spread = graph.Group, mapping.__call__

    class Bounded(tp.dependency.group.Group):  # type: ignore[misc]
        def add_dep(self, dep: Any, idxs: Any) -> None:
            if len(self) > most:
                raise Unfit("its couplings have no end")
            super().add_dep(dep, idxs)

    counted = 0

    def bounded(self: Any, idxs: Any) -> Any:
        nonlocal counted
        counted += len(idxs) * (1 if self.reverse else self._stride)
        if counted > MOST_PLACES:
            raise Unfit("its channels are spread over too many places of what reads them")
        return spread(self, idxs)

    graph.Group, mapping.__call__ = Bounded, bounded
    try:
        yield
    finally:
        graph.Group, mapping.__call__ = group, spread
