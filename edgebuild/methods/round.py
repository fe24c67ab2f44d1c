"""Puts weights where the exporters' rounding loses least: equalizes, smooths, clips, rounds."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from edgebuild.cache import Cache
from edgebuild.capture import capture
from edgebuild.methods._batch_norms import fold_batch_norms
from edgebuild.methods._round_adaround import adaround
from edgebuild.methods._round_bias import add_biases, correct_bias
from edgebuild.methods._round_clip import clipped
from edgebuild.methods._round_equalize import equalizable, equalize
from edgebuild.methods._round_gptq import gptq
from edgebuild.methods._round_grid import GRIDS, Grid
from edgebuild.methods._round_layers import Layer, layers_of
from edgebuild.methods._round_seen import seen_by
from edgebuild.methods._round_smooth import smooth, smoothable
from edgebuild.methods._round_walk import Row, walk
from edgebuild.samples import StoredSamples, store_split
from edgebuild.vocabulary.contracts import WORKPLACE, Stage, Workplace
from edgebuild.vocabulary.errors import MethodFailed, did_you_mean
from edgebuild.vocabulary.offer import NETWORK, Choice, Offer, Part
from edgebuild.vocabulary.precision import FOUR_BIT_BLOCK, LayerKind, Precision
from edgebuild.vocabulary.program import Program
from edgebuild.vocabulary.recipe import CLIP_ACTIVATIONS
from edgebuild.vocabulary.target import RuntimeFacts
from edgebuild.vocabulary.workload import Workload

PRESERVING = ("equalize", "smooth")
ROUNDING = ("clip", "adaround", "gptq", "bias-correction")
STEPS = (*PRESERVING, *ROUNDING, CLIP_ACTIVATIONS)
# All samples are in memory at once, as float activations: exact ones, and those behind rounded
# layers.
BYTES_OF_SAMPLES = 1e9
FLOAT_BYTES = 4
LANES = 2
FEWEST_SAMPLES = 8


@dataclass(frozen=True)
class Round:
    """Better rounding than to the nearest, of the whole network.

    An option lists steps, and after them the grid that exporters will put the weights on:
    "equalize, adaround, bias-correction", or "clip, gptq, bias-correction int4". Whatever their
    order, the steps are carried out in this one:

    - equalize: evens out the weights' ranges between layers; the network computes what it did.
    - smooth: moves outlier channels out of normalizations; the network computes what it did.
    - clip: gives up the largest weights for finer steps.
    - adaround or gptq: rounds each weight to the step that is best for the layer's outputs.
    - bias-correction: adds to biases what rounded weights lack on average.
    - clip-activations: tells the exporters to cut off rare extremes of activations.

    BatchNorm is folded first, as exporters do. Unless the steps only preserve, all weights come
    out on the grid, where the exporters' own rounding leaves them.

    Attributes:
        samples: how many calibration samples it looks at; fewer where they are large.
        iterations: of adaround, for every layer.
    """

    stage: ClassVar[Stage] = Stage.ROUND
    samples: int = 64
    iterations: int = 300

    def offers(self, workload: Workload, runtime: RuntimeFacts) -> Iterator[Offer]:
        network = copy.deepcopy(workload.network)
        program = fold_batch_norms(network, workload.example)
        for option in _sensible(program, runtime):
            yield Offer(NETWORK, Choice("round", option))

    def declined(self, workload: Workload, runtime: RuntimeFacts) -> Mapping[str, str]:
        has_offers = any(True for _ in self.offers(workload, runtime))
        return {} if has_offers else {"": f"{runtime.name} has no integer kernel for any layer"}

    def apply(
        self,
        network: nn.Module,
        chosen: Mapping[Part, Choice],
        workload: Workload,
        workplace: Workplace = WORKPLACE,
    ) -> nn.Module:
        steps, grid = _read(chosen)
        changed = copy.deepcopy(network).eval()
        program = fold_batch_norms(changed, workload.example)
        if "bias-correction" in steps and add_biases(changed, layers_of(program).values()):
            program = capture(changed, workload.example)
        if "equalize" in steps:
            equalize(program)
        if steps & {"smooth", *ROUNDING}:
            rows = _rows(workload, min(self.samples, _affordable(program)))
            if "smooth" in steps:
                smooth(program, rows)
            if steps & set(ROUNDING):
                self._round(program, steps, grid, rows, workplace)
        return changed

    def _round(
        self,
        program: Program,
        steps: Set[str],
        grid: Grid,
        rows: Sequence[Row],
        workplace: Workplace,
    ) -> None:
        """Puts the weights of every layer on the grid, in place and in the order of execution."""
        corrects = "bias-correction" in steps

        def before(layer: Layer, exact: Sequence[Tensor], rounded: Sequence[Tensor]) -> None:
            weights = layer.rows()
            found = grid.steps(layer.site.kind, weights)
            if "clip" in steps:
                found = clipped(weights, found)
            if not layer.has_columns or not steps & {"adaround", "gptq"}:
                chosen = found.nearest(weights)
            else:
                seen = seen_by(layer, exact, rounded, centered=corrects and layer.can_shift)
                if "gptq" in steps:
                    chosen = gptq(weights, found, seen)
                else:
                    chosen = adaround(weights, found, seen, self.iterations)
            layer.store(chosen * found.scale)

        def after(layer: Layer, exact: Sequence[Tensor], rounded: Sequence[Tensor]) -> None:
            if corrects and layer.can_shift:
                correct_bias(layer, exact, rounded)
            step.advance(layer.site.path)

        title = f"Rounding the weights ({', '.join(sorted(steps))})"
        with workplace.progress.step(title, total=len(layers_of(program))) as step:
            walk(program, rows, before, after)


def _read(chosen: Mapping[Part, Choice]) -> tuple[Set[str], Grid]:
    """The steps and the grid of the one option.

    Raises:
        MethodFailed: another part than the whole network, or words that are no such steps.
    """
    if set(chosen) != {NETWORK}:
        paths = ", ".join(part.path or "the network" for part in chosen) or "no part"
        raise MethodFailed(f"round: works on the network as a whole, not on {paths}")
    option = chosen[NETWORK].option
    words, _, last = option.rpartition(" ")
    listed = words if last in GRIDS else option
    steps = listed.split(", ")
    for step in steps:
        if step not in STEPS:
            known = did_you_mean(step, STEPS)
            raise MethodFailed(f"round the network: no step is called {step!r}.{known}")
    if {"adaround", "gptq"} <= set(steps):
        raise MethodFailed(f"round the network: {option!r} rounds twice: adaround or gptq")
    return set(steps), GRIDS.get(last, Grid())


def _sensible(program: Program, runtime: RuntimeFacts) -> Iterator[str]:
    """The options that can help this network on this runtime, the most promising first."""
    layers = layers_of(program).values()
    offered = {p for layer in layers for p in runtime.kernels.get(layer.site.kind, ())}
    first = [""]
    if any(equalizable(program)):
        first.insert(0, "equalize, ")
    if any(smoothable(program)):
        first.insert(0, "smooth, ")
    best = "adaround, bias-correction"
    if Precision.INT8_STATIC in offered:
        yield f"{first[0]}{best}, {CLIP_ACTIVATIONS}"
    if offered & {Precision.INT8_STATIC, Precision.INT8_DYNAMIC}:
        yield from (f"{words}{best}" for words in first)
        # Rounds nearly as well in a fraction of the time; and hardly any time at all.
        yield f"{first[0]}gptq, bias-correction"
        yield from (f"{words}bias-correction" for words in first)
    if Precision.INT4_WEIGHTS in offered:
        grid = _four_bit_grid(runtime)
        yield from (f"{words}clip, {best} {grid}" for words in first)
        yield f"{first[0]}clip, gptq, bias-correction {grid}"


def _four_bit_grid(runtime: RuntimeFacts) -> str:
    """What four bits mean there: which layers have them, and which weights share a scale."""

    def bits(kind: LayerKind) -> int:
        return 4 if Precision.INT4_WEIGHTS in runtime.kernels.get(kind, ()) else 8

    linear = bits(LayerKind.LINEAR)
    # onnxruntime's kernel takes blocks, LiteRT's a scale for each output.
    block = FOUR_BIT_BLOCK if linear == 4 and runtime.name == "onnxruntime" else 0
    wanted = Grid(bits(LayerKind.CONVOLUTION), linear, block)
    return next(name for name, grid in GRIDS.items() if grid == wanted)


def _affordable(program: Program) -> int:
    """How many samples may be in memory at once, each with what the largest operator moves."""
    largest = max((operator.activations for operator in program.operators), default=1)
    bytes_of_a_sample = largest * FLOAT_BYTES * LANES
    return max(FEWEST_SAMPLES, int(BYTES_OF_SAMPLES / bytes_of_a_sample))


def _rows(workload: Workload, count: int) -> list[Row]:
    """Calibration samples at even distances, each input with batch 1."""
    if isinstance(workload.calibration, StoredSamples):
        return [tuple(map(torch.tensor, row)) for row in workload.calibration.rows(count)]
    with tempfile.TemporaryDirectory(prefix="edgebuild-") as folder:
        cache = Cache(Path(folder))
        stored = store_split(workload.calibration, workload.example, "calibration", cache)
        return [tuple(map(torch.tensor, row)) for row in stored.rows(count)]
