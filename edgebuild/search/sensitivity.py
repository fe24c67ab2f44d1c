"""Finds each layer's sensitivity: how much the outputs change when it alone is quantized."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from edgebuild.vocabulary.precision import LayerKind, Precision
from edgebuild.vocabulary.program import Program, Site

# Every layer in every precision is a run of its own: of large networks fewer samples are looked at,
# so that what is multiplied in all of them stays about this many.
FEWEST_SAMPLES, MOST_SAMPLES = 8, 24
MULTIPLICATIONS = 6e11
ACTIVATION_STEPS = 255


@dataclass(frozen=True)
class Rounding:
    """How a precision rounds: steps on each side of zero for weights, and whether activations
    share one range over all samples, as calibrated ones do."""

    weight_steps: int
    is_calibrated: bool


ROUNDINGS: Mapping[Precision, Rounding] = {
    Precision.INT8_STATIC: Rounding(127, is_calibrated=True),
    Precision.INT8_DYNAMIC: Rounding(127, is_calibrated=False),
    Precision.INT4_WEIGHTS: Rounding(7, is_calibrated=True),
}
Losses = Mapping[tuple[Site, Precision], float]


def sensitivity(case: Case, progress: Progress) -> Losses:
    """KL of the outputs on calibration samples, in nats, for each layer and integer precision.

    The layer's weights are rounded per output channel, and its input to eight bits; everything
    else stays float.
    """

    def make(folder: Path) -> None:
        found = _sensitivity(case, progress)
        table = [
            [site.path, site.kind, precision, loss] for (site, precision), loss in found.items()
        ]
        (folder / "sensitivity.json").write_text(json.dumps(table))

    key = digest(case.program.fingerprint, case.calibration.digest, samples_for(case.program))
    entry = case.cache.entry("sensitivity", key, make)
    table = json.loads((entry / "sensitivity.json").read_text())
    return {
        (Site(path, LayerKind(kind)), Precision(precision)): loss
        for path, kind, precision, loss in table
    }


def samples_for(program: Program) -> int:
    """How many samples the layers of a network are judged by."""
    # A branch runs on from its layer: half the network, on average.
    branches = len(program.sites) * len(ROUNDINGS) / 2
    work = sum(operator.macs for operator in program.operators) * branches
    return int(np.clip(MULTIPLICATIONS / max(work, 1.0), FEWEST_SAMPLES, MOST_SAMPLES))


def _sensitivity(case: Case, progress: Progress) -> Losses:
    module = case.program.exported.module(check_guards=False)
    rows = [
        tuple(map(torch.tensor, row)) for row in case.calibration.rows(samples_for(case.program))
    ]
    losses: dict[tuple[Site, Precision], list[float]] = {}
    with torch.no_grad(), progress.step("Surveying the layers", total=len(rows)) as step:
        watched = _Watched(module)
        wanted = [_flat(_run(watched, row)) for row in rows]
        # One sample is too few to tell the variance of an output, above all of a single number.
        spread = [float(np.var(column)) for column in zip(*wanted, strict=True)]
        for row, outputs in zip(rows, wanted, strict=True):
            judged = partial(divergence, reference=outputs, spread=spread)
            branched = _Branched(module, case.program.nodes, watched.ranges, judged)
            _run(branched, row)
            for place, loss in branched.losses.items():
                losses.setdefault(place, []).append(loss)
            step.advance()
    return {place: float(np.mean(found)) for place, found in losses.items()}


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
        self.losses: dict[tuple[Site, Precision], float] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self._branches:
            site, names = self._branches[n.name]
            for precision, rounding in ROUNDINGS.items():
                disturbed = _Disturbed(self.module, names, self._ranges, rounding)  # type: ignore[arg-type]
                outputs = _flat(disturbed.run(initial_env=self._before(n)))
                self.losses[site, precision] = self._loss(outputs)
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
        rounding: Rounding,
    ) -> None:
        super().__init__(module)
        self._nodes = set(nodes)
        self._ranges = ranges
        self._rounding = rounding

    def run_node(self, n: fx.Node) -> Any:
        if n.name not in self._nodes:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return self.call_function(n.target, self._quantized(n, args), kwargs)

    def _quantized(self, node: fx.Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
        name, steps = operator_name(node), self._rounding.weight_steps
        if name in RECURRENT:
            weights = {3} if isinstance(args[3], list) else {2}
            return tuple(
                [round_weights(weight, 0, steps) for weight in argument]
                if index in weights
                else argument
                for index, argument in enumerate(args)
            )
        kind, position = WEIGHTED[name]
        changed = list(args)
        changed[position] = round_weights(args[position], _channel_axis(name, kind), steps)
        if node.name in self._ranges:
            source = 1 if name == "addmm" else 0
            changed[source] = round_activations(args[source], *self._range(node, args[source]))
        return tuple(changed)

    def _range(self, node: fx.Node, values: torch.Tensor) -> tuple[float, float]:
        if self._rounding.is_calibrated:
            return self._ranges[node.name]
        return min(float(values.min()), 0.0), max(float(values.max()), 0.0)


def _channel_axis(name: str, kind: LayerKind) -> int:
    """The axis of output channels in the layout of each operator's weight."""
    if kind is LayerKind.TRANSPOSED or name == "addmm":
        return 1
    return -1 if name in ("matmul", "mm") else 0


def round_weights(weight: torch.Tensor, axis: int, steps: int) -> torch.Tensor:
    """Rounds to a symmetric grid of 2 × `steps` steps, a scale for each output channel."""
    if weight.ndim < 2:
        return weight
    others = [other for other in range(weight.ndim) if other != axis % weight.ndim]
    scale = weight.abs().amax(dim=others, keepdim=True).clamp_min(1e-12) / steps
    return (weight / scale).round() * scale


def round_activations(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Rounds to 255 steps between the ends of a range that holds zero."""
    scale = max(high - low, 1e-12) / ACTIVATION_STEPS
    zero = round(-low / scale)
    return ((values / scale + zero).round().clamp(0, ACTIVATION_STEPS) - zero) * scale
