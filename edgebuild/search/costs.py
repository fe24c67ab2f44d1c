"""What layers cost on this machine: each is measured once, widths between are interpolated."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter
from scipy.optimize import nnls

from edgebuild import catalog
from edgebuild.cache import Cache, digest, this_machine
from edgebuild.search.layers import layer_runs, resized
from edgebuild.search.probe_network import NOTHING, Timing, time_layers
from edgebuild.vocabulary.artifact import KernelRun
from edgebuild.vocabulary.calibration import TICK
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.offer import LayerShape, weights
from edgebuild.vocabulary.precision import LayerKind, Precision
from edgebuild.vocabulary.program import Program, Site
from edgebuild.vocabulary.target import RuntimeFacts
from edgebuild.vocabulary.units import Seconds

# A layer, and what it is computed in.
Place = tuple[LayerShape, Precision]
# About as many as networks have, so that caches are as cold as there; and the converters need
# several times a network's numbers in memory.
LAYERS_AT_ONCE = 50
NUMBERS_AT_ONCE = 50_000_000
WIDTHS = (1.0, 0.5, 0.25)
TIMING = TypeAdapter(Timing)


def measure_costs(
    shapes: Collection[Place],
    format: str,
    runtime: RuntimeFacts,
    cache: Cache,
    progress: Progress,
) -> dict[Place, Seconds]:
    """What each layer takes in its precision, alone on one thread of this machine.

    Left out is what the format refuses, and what could not be timed, which `progress` tells.
    """
    timings = measure_timings(shapes, format, runtime, cache, progress)
    for (shape, precision), timing in timings.items():
        if not timing.rounds:
            widths = f"{shape.inputs} to {shape.outputs}"
            progress.say(f"{format} {precision} {shape.kind} {widths}: no time, {timing.reason}")
    return {place: timing.seconds for place, timing in timings.items() if timing.rounds}


def measure_timings(
    shapes: Collection[Place],
    format: str,
    runtime: RuntimeFacts,
    cache: Cache,
    progress: Progress,
) -> dict[Place, Timing]:
    """Every layer's timing, from the cache where any build has measured it on this machine."""
    exporter = catalog.exporter(format)
    version = catalog.runtime(exporter.runtime).version()
    wanted = [
        place for place in dict.fromkeys(shapes) if not exporter.refusal(place[0].kind, place[1])
    ]
    keys = {place: _key(place, format, runtime, version) for place in wanted}
    found = {place: known for place in wanted if (known := _stored(cache, keys[place]))}
    missing = [place for place in wanted if place not in found]
    with progress.step("Timing layers", total=len(missing)) as step:
        for batch, precision in _batches(missing):
            timings = time_layers(batch, precision, format, runtime)
            for shape, timing in zip(batch, timings, strict=True):
                found[shape, precision] = timing
                if timing.is_settled:
                    _store(cache, keys[shape, precision], timing)
                step.advance(f"{format} {precision}")
    return found


def _key(place: Place, format: str, runtime: RuntimeFacts, version: str) -> str:
    shape, precision = place
    # The runtimes profile on one thread whatever the target has; the type of activations decides
    # which kernel runs.
    words = (format, precision, runtime.activations, version, this_machine())
    return digest(asdict(shape), *words)


class _Missing(Exception):
    """No build has measured this yet."""


def _stored(cache: Cache, key: str) -> Timing | None:
    def make(folder: Path) -> None:
        raise _Missing

    try:
        folder = cache.entry("layer", key, make)
    except _Missing:
        return None
    return TIMING.validate_json((folder / "timing.json").read_bytes())


def _store(cache: Cache, key: str, timing: Timing) -> None:
    cache.entry("layer", key, lambda folder: _write(folder / "timing.json", timing))


def _write(path: Path, timing: Timing) -> None:
    path.write_bytes(TIMING.dump_json(timing))


def _batches(places: Sequence[Place]) -> Iterator[tuple[list[LayerShape], Precision]]:
    """Layers of one precision, as many as go into one network.

    The same layers come in each of their precisions: the float network that the exporters start
    from is then converted once for all of them.
    """
    precisions: dict[LayerShape, tuple[Precision, ...]] = {}
    for shape, precision in places:
        precisions[shape] = (*precisions.get(shape, ()), precision)
    alike: dict[frozenset[Precision], list[LayerShape]] = {}
    for shape, chosen in precisions.items():
        alike.setdefault(frozenset(chosen), []).append(shape)
    for shapes in alike.values():
        for batch in _networks(shapes):
            yield from ((batch, precision) for precision in precisions[batch[0]])


def _networks(shapes: Sequence[LayerShape]) -> Iterator[list[LayerShape]]:
    """As many at a time as go into one network."""
    batch: list[LayerShape] = []
    for shape in shapes:
        numbers = sum(map(_numbers, [*batch, shape]))
        if len(batch) == LAYERS_AT_ONCE or (batch and numbers > NUMBERS_AT_ONCE):
            yield batch
            batch = []
        batch.append(shape)
    yield batch


def _numbers(shape: LayerShape) -> int:
    """About how many a layer holds, reads and writes."""
    return weights(shape) + (shape.inputs + shape.outputs) * math.prod(shape.extent)


def family_grid(shape: LayerShape, channel_multiple: int) -> list[LayerShape]:
    """The widths of a layer to measure, so that any between them can be interpolated.

    Full, half and a quarter of both sides, and each side narrow beside a full one, rounded to
    the multiple of channels that is worth having. A side that is no wider than that stays.
    """
    multiple = math.lcm(channel_multiple, _lasting_groups(shape))
    inputs = [_narrowed(shape.inputs, share, multiple) for share in WIDTHS]
    outputs = [_narrowed(shape.outputs, share, multiple) for share in WIDTHS]
    if shape.kind is LayerKind.DEPTHWISE:
        each = shape.outputs // shape.inputs
        pairs = [(width, width * each) for width in inputs]
    elif shape.kind is LayerKind.EMBEDDING:
        pairs = [(shape.inputs, width) for width in outputs]
    else:
        corners = [(inputs[0], outputs[-1]), (inputs[-1], outputs[0])]
        pairs = [*zip(inputs, outputs, strict=True), *corners]
    return [resized(shape, *pair) for pair in dict.fromkeys(pairs)]


def _lasting_groups(shape: LayerShape) -> int:
    """The groups that widths must be divided by; a depthwise layer has as many as channels."""
    return 1 if shape.kind is LayerKind.DEPTHWISE else shape.groups


def _narrowed(width: int, share: float, multiple: int) -> int:
    rounded = max(round(width * share / multiple), 1) * multiple
    return min(rounded, width) if share < 1 else width


@dataclass(frozen=True)
class LayerCosts:
    """Measured seconds, and a curve through them for other widths of the same layers."""

    measured: Mapping[Place, Seconds]

    def knows(self, shape: LayerShape, precision: Precision) -> bool:
        """Whether a layer that differs in its widths alone was measured in this precision."""
        return (family(shape), precision) in self._curves

    def seconds(self, shape: LayerShape, precision: Precision) -> Seconds:
        """What a layer takes: as measured, or t0 + a · inputs · outputs + b · inputs + c · outputs.

        A look-up whose kernel the profile does not name takes nothing: its time is in the glue.

        Raises:
            LookupError: no layer that differs in its widths alone was measured.
        """
        measured = self.measured.get((shape, precision))
        if measured is not None:
            return measured
        if self.knows(shape, precision):
            curve = self._curves[family(shape), precision]
            return Seconds(float(_terms(shape) @ curve))
        if shape.kind is LayerKind.EMBEDDING:
            return NOTHING
        raise LookupError(f"no width of {shape} was measured in {precision}")

    @cached_property
    def _curves(self) -> Mapping[Place, np.ndarray]:
        families: dict[Place, dict[LayerShape, Seconds]] = {}
        for (shape, precision), seconds in self.measured.items():
            families.setdefault((family(shape), precision), {})[shape] = seconds
        return {place: _curve(measured) for place, measured in families.items()}


def family(shape: LayerShape) -> LayerShape:
    """What layers share that differ in their widths alone."""
    return replace(shape, inputs=0, outputs=0, groups=_lasting_groups(shape))


def _curve(measured: Mapping[LayerShape, Seconds]) -> np.ndarray:
    """The coefficients of the terms, none negative, with the least squares of relative errors."""
    seconds = np.array(list(measured.values()))
    weights = 1 / np.maximum(seconds, TICK)
    terms = np.array([_terms(shape) for shape in measured]) * weights[:, None]
    # Terms of one size, so that the solver's tolerance means the same to all of them.
    sizes = np.maximum(terms.max(axis=0), 1e-30)
    coefficients, _ = nnls(terms / sizes, seconds * weights)
    found: np.ndarray = coefficients / sizes
    return found


def _terms(shape: LayerShape) -> np.ndarray:
    """1, inputs × outputs, inputs, outputs; what a kind of layer does not do is zero."""
    inputs, outputs = float(shape.inputs), float(shape.outputs)
    if shape.kind in (LayerKind.DEPTHWISE, LayerKind.EMBEDDING):
        # Every channel on its own; and of the rows of a table only a few are read.
        return np.array([1.0, 0.0, 0.0, outputs])
    return np.array([1.0, inputs * outputs, inputs, outputs])


def profile_overhead(
    format: str, runtime: RuntimeFacts, cache: Cache, progress: Progress
) -> Seconds:
    """What the runtime's profile shows for a kernel that computes nothing."""
    place = (LayerShape(LayerKind.LINEAR, 1, 1), Precision.FP32)
    return measure_timings([place], format, runtime, cache, progress)[place].idle


def glue_of(
    runs: Sequence[KernelRun], program: Program, overhead: Seconds = NOTHING
) -> dict[str, Seconds]:
    """The time of an artifact's kernels that are no layer's, by the layer that ran before them.

    `overhead` is taken from each kernel's time: what the profile itself takes.

    What ran before every layer is put with the first. Look-ups that the profile does not name are
    glue; so is a recurrent layer, its own, because it is not measured alone. Empty where another
    layer is not named: then nobody knows which kernels are glue.
    """
    named = {site for run in runs for site in run.sites}
    layers = {path: shapes[0].kind for path, shapes in layer_runs(program).items()}
    if any(kind is not LayerKind.EMBEDDING for path, kind in layers.items() if path not in named):
        return {}
    last = next((run.sites[0] for run in runs if run.sites), "")
    glue: dict[str, float] = {}
    for run in runs:
        last = run.sites[0] if run.sites else last
        if not layers.keys() & set(run.sites):
            glue[last] = glue.get(last, 0.0) + max(run.seconds - overhead, 0.0)
    return {path: Seconds(seconds) for path, seconds in glue.items()}


def predict(
    program: Program,
    precisions: Mapping[Site, Precision],
    costs: LayerCosts,
    glue: Mapping[str, Seconds],
) -> Seconds:
    """The latency of a network: its layers one by one, and the glue between them.

    The sum of what the kernels take, without what the runtime takes to call them.

    Raises:
        LookupError: a layer that was not measured in its precision.
    """
    chosen = {site.path: precision for site, precision in precisions.items()}
    layers = sum(
        costs.seconds(shape, chosen.get(path, Precision.FP32))
        for path, shapes in layer_runs(program).items()
        for shape in shapes
    )
    return Seconds(layers + sum(glue.values()))
