"""Surveys the sites: how much the outputs change when one layer alone is quantized."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Mapping
from functools import partial
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
        watched = _Watched(module)
        wanted = [_flat(_run(watched, row)) for row in rows]
        # One sample is too few to tell the variance of an output, above all of a single number.
        spread = [float(np.var(column)) for column in zip(*wanted, strict=True)]
        for row, outputs in zip(rows, wanted, strict=True):
            judged = partial(divergence, reference=outputs, spread=spread)
            branched = _Branched(module, case.program.nodes, watched.ranges, judged)
            _run(branched, row)
            for site, loss in branched.losses.items():
                losses[site].append(loss)
            step.advance()
    return {site: float(np.mean(found)) for site, found in losses.items()}


def _run(interpreter: fx.Interpreter, row: tuple[torch.Tensor, ...]) -> Any:
    # Copied: a network may write into its inputs.
    return interpreter.run(*(tensor.clone() for tensor in row))


def _flat(outputs: Any) -> list[np.ndarray]:
    return [tensor.numpy() for tensor in pytree.tree_leaves(outputs)]


class _Watched(fx.Interpreter):
    """Runs the network and keeps the range of what each layer reads, zero included."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.ranges: dict[str, tuple[float, float]] = {}

    def run_node(self, n: fx.Node) -> Any:
        source = _input_of(n)
        if source is not None:
            value = self.env[source]
            low, high = self.ranges.get(n.name, (0.0, 0.0))
            self.ranges[n.name] = min(low, float(value.min())), max(high, float(value.max()))
        return super().run_node(n)


def _input_of(node: fx.Node) -> fx.Node | None:
    """The node whose float values a layer multiplies with its weights."""
    name = operator_name(node)
    if name not in WEIGHTED or WEIGHTED[name][0] is LayerKind.EMBEDDING:
        return None
    source = node.args[1 if name == "addmm" else 0]
    return source if isinstance(source, fx.Node) else None


class _Branched(fx.Interpreter):
    """Runs the network; before each layer, a branch runs on with that layer alone quantized."""

    def __init__(
        self,
        module: fx.GraphModule,
        nodes: Mapping[Site, tuple[str, ...]],
        ranges: Mapping[str, tuple[float, float]],
        loss: Callable[[list[np.ndarray]], float],
    ) -> None:
        super().__init__(module)
        self._branches = {names[0]: (site, names) for site, names in nodes.items()}
        self._ranges = ranges
        self._loss = loss
        self.losses: dict[Site, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self._branches:
            site, names = self._branches[n.name]
            disturbed = _Disturbed(self.module, names, self._ranges)  # type: ignore[arg-type]
            self.losses[site] = self._loss(_flat(disturbed.run(initial_env=self._before(n))))
        return super().run_node(n)

    def _before(self, current: fx.Node) -> dict[fx.Node, Any]:
        """What the branch need not run again; None for what nobody reads any more.

        Copied, because operators such as `add_` write into what earlier ones returned.
        """
        weights = {id(weight): weight for weight in self.module.state_dict(keep_vars=True).values()}
        values = copy.deepcopy(list(self.env.values()), weights)
        ahead = itertools.takewhile(lambda node: node is not current, self.graph.nodes)
        return dict.fromkeys(ahead) | dict(zip(self.env, values, strict=True))


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
