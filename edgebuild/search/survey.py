"""Surveys the sites: how much the outputs change when one layer alone is quantized."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from edgebuild.cache import digest
from edgebuild.capture import RECURRENT, WEIGHTED, operator_name
from edgebuild.search.case import Case
from edgebuild.search.score import divergence
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.precision import LayerKind
from edgebuild.vocabulary.program import Site

SAMPLES = 24
WEIGHT_STEPS = 127
ACTIVATION_STEPS = 255


def survey(case: Case, progress: Progress) -> Mapping[Site, float]:
    """Every site's sensitivity: KL of the outputs on calibration samples, in nats.

    The layer's weights are rounded to eight bits per output channel, and its input to eight bits
    over the range that it has on these samples; everything else stays float.
    """

    def make(folder: Path) -> None:
        found = _survey(case, progress)
        table = [[site.path, site.kind, loss] for site, loss in found.items()]
        (folder / "sensitivity.json").write_text(json.dumps(table))

    key = digest(case.program.fingerprint, case.calibration.digest, SAMPLES)
    entry = case.cache.entry("survey", key, make)
    table = json.loads((entry / "sensitivity.json").read_text())
    return {Site(path, LayerKind(kind)): loss for path, kind, loss in table}


def _survey(case: Case, progress: Progress) -> Mapping[Site, float]:
    module = case.program.exported.module(check_guards=False)
    rows = [tuple(map(torch.tensor, row)) for row in case.calibration.rows(SAMPLES)]
    losses: dict[Site, list[float]] = {site: [] for site in case.program.sites}
    with torch.no_grad(), progress.step("Surveying the layers", total=len(rows)) as step:
        ranges = _input_ranges(module, rows)
        for row in rows:
            recorded = _Recorder(module)
            wanted = _flat(recorded.run(*row))
            for site, nodes in case.program.nodes.items():
                disturbed = _Disturbed(module, nodes, ranges)
                got = _flat(disturbed.run(*row, initial_env=recorded.before(nodes[0])))
                losses[site].append(divergence(got, wanted))
            step.advance()
    return {site: float(np.mean(found)) for site, found in losses.items()}


def _flat(outputs: Any) -> list[np.ndarray]:
    return [tensor.numpy() for tensor in pytree.tree_leaves(outputs)]


def _input_ranges(
    module: fx.GraphModule, rows: list[tuple[torch.Tensor, ...]]
) -> Mapping[str, tuple[float, float]]:
    """The smallest and largest value that each layer reads, zero included."""
    ranges: dict[str, tuple[float, float]] = {}
    for row in rows:
        recorded = _Recorder(module)
        recorded.run(*row)
        for node in module.graph.nodes:
            source = _input_of(node)
            if source is not None and source in recorded.values:
                value = recorded.values[source]
                low, high = ranges.get(node.name, (0.0, 0.0))
                ranges[node.name] = min(low, float(value.min())), max(high, float(value.max()))
    return ranges


def _input_of(node: fx.Node) -> fx.Node | None:
    """The node whose float values a layer multiplies with its weights."""
    name = operator_name(node)
    if name not in WEIGHTED or WEIGHTED[name][0] is LayerKind.EMBEDDING:
        return None
    source = node.args[1 if name == "addmm" else 0]
    return source if isinstance(source, fx.Node) else None


class _Recorder(fx.Interpreter):
    """Runs the network and keeps every intermediate value."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self._nodes = list(module.graph.nodes)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.values[n] = super().run_node(n)
        return self.values[n]

    def before(self, name: str) -> dict[fx.Node, Any]:
        """The values of all nodes ahead of the named one: what need not run again."""
        ahead: dict[fx.Node, Any] = {}
        for node in self._nodes:
            if node.name == name:
                break
            ahead[node] = self.values[node]
        return ahead


class _Disturbed(fx.Interpreter):
    """Runs the network with the named nodes quantized."""

    def __init__(
        self,
        module: fx.GraphModule,
        nodes: tuple[str, ...],
        ranges: Mapping[str, tuple[float, float]],
    ) -> None:
        super().__init__(module)
        self._nodes = set(nodes)
        self._ranges = ranges

    def run_node(self, n: fx.Node) -> Any:
        if n.name not in self._nodes:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return self.call_function(n.target, self._quantized(n, args), kwargs)

    def _quantized(self, node: fx.Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
        name = operator_name(node)
        if name in RECURRENT:
            weights = {3} if isinstance(args[3], list) else {2}
            return tuple(
                [round_weights(weight, 0) for weight in argument] if index in weights else argument
                for index, argument in enumerate(args)
            )
        kind, position = WEIGHTED[name]
        changed = list(args)
        changed[position] = round_weights(args[position], _channel_axis(name, kind))
        if node.name in self._ranges:
            source = 1 if name == "addmm" else 0
            changed[source] = round_activations(args[source], *self._ranges[node.name])
        return tuple(changed)


def _channel_axis(name: str, kind: LayerKind) -> int:
    """The axis of output channels in the layout of each operator's weight."""
    if kind is LayerKind.TRANSPOSED or name == "addmm":
        return 1
    return -1 if name in ("matmul", "mm") else 0


def round_weights(weight: torch.Tensor, axis: int) -> torch.Tensor:
    """Rounds to a symmetric grid of 2 × 127 steps, a scale for each output channel."""
    if weight.ndim < 2:
        return weight
    others = [other for other in range(weight.ndim) if other != axis % weight.ndim]
    scale = weight.abs().amax(dim=others, keepdim=True).clamp_min(1e-12) / WEIGHT_STEPS
    return (weight / scale).round() * scale


def round_activations(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Rounds to 255 steps between the ends of a range that holds zero."""
    scale = max(high - low, 1e-12) / ACTIVATION_STEPS
    zero = round(-low / scale)
    return ((values / scale + zero).round().clamp(0, ACTIVATION_STEPS) - zero) * scale
