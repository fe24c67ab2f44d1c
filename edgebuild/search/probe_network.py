"""Times many layers at once: one network that holds them side by side, profiled by the runtime."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from edgebuild import catalog
from edgebuild.cache import Cache
from edgebuild.capture import capture
from edgebuild.samples import store_split
from edgebuild.search.layers import input_of, module_of
from edgebuild.vocabulary.artifact import Arithmetic, KernelRun
from edgebuild.vocabulary.errors import told
from edgebuild.vocabulary.offer import Choice, LayerShape
from edgebuild.vocabulary.precision import LayerKind, Precision
from edgebuild.vocabulary.recipe import Candidate, Recipe
from edgebuild.vocabulary.target import RuntimeFacts
from edgebuild.vocabulary.units import Seconds

# Each round is a fresh session of the runtime, and several runs in it.
ROUNDS = 5
# Clocks tick in microseconds: only several layers that do nothing tell what nothing takes.
IDLE_LAYERS = 8
IDLE_WIDTH = 16
NOTHING = Seconds(0.0)
UNNAMED = "the runtime's profile does not tell which kernel computed it"
FLOATING = "a float kernel computed it"


@dataclass(frozen=True)
class Timing:
    """One layer's seconds in each round, as the runtime's profile has them.

    `idle` is what the profile shows for such a layer with nothing to compute: onnxruntime's clock
    runs on while it notes what it timed, for microseconds. Where there are no rounds, `reason`
    says why.
    """

    rounds: tuple[Seconds, ...]
    idle: Seconds = NOTHING
    reason: str = ""

    @property
    def is_settled(self) -> bool:
        """Whether another try would tell the same; a failure may have been the machine's."""
        return self.reason in ("", UNNAMED, FLOATING)

    @property
    def seconds(self) -> Seconds:
        """Of the fastest round: whatever else the machine does can only slow a kernel down."""
        return Seconds(max(min(self.rounds) - self.idle, 0.0))

    @property
    def spread(self) -> float:
        """How much slower the median round was than the fastest, as a share of it."""
        fastest = max(min(self.rounds), 1e-6)
        return (statistics.median(self.rounds) - min(self.rounds)) / fastest


class ProbeNetwork(nn.Module):
    """Layers side by side, each with an input and an output of its own.

    So no runtime can fuse, reorder or share anything between them; whatever it adds around a
    layer, such as another order of its input's axes, is a kernel of its own in the profile.
    """

    def __init__(self, shapes: Sequence[LayerShape]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(map(module_of, shapes))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(value) for layer, value in zip(self.layers, inputs, strict=True))


def time_layers(
    shapes: Sequence[LayerShape], precision: Precision, format: str, runtime: RuntimeFacts
) -> list[Timing]:
    """What each layer takes in one precision, in the format's runtime, on one thread.

    A layer that cannot be made alone is told by its reason; the others are timed without it.
    """
    try:
        return _timed(shapes, precision, format, runtime)
    except OSError:
        # The disk, not a layer.
        raise
    except Exception as error:
        # Converters raise whatever they like, without a word on which layer.
        if len(shapes) == 1:
            return [Timing((), reason=told(error))]
        half = len(shapes) // 2
        return [
            timing
            for part in (shapes[:half], shapes[half:])
            for timing in time_layers(part, precision, format, runtime)
        ]


def _timed(
    shapes: Sequence[LayerShape], precision: Precision, format: str, runtime: RuntimeFacts
) -> list[Timing]:
    idle = list(dict.fromkeys(map(_idle, shapes)))
    # One more idle layer comes first: the first kernel of a session bears what it takes to start.
    laid_out = [idle[0], *idle * IDLE_LAYERS, *shapes]
    each = list(zip(*_rounds(laid_out, precision, format, runtime), strict=True))
    timed = each[-len(shapes) :]
    overheads = {
        shape: _overhead(each[1 + number : -len(shapes) : len(idle)])
        for number, shape in enumerate(idle)
    }
    return [
        _timing(rounds, overheads[_idle(shape)])
        for shape, rounds in zip(shapes, timed, strict=True)
    ]


def _idle(shape: LayerShape) -> LayerShape:
    """A layer that runs on the same kernel as this one, with next to nothing to compute."""
    ones, zeros = (1,) * len(shape.kernel), (0,) * len(shape.kernel)
    groups = IDLE_WIDTH if shape.kind is LayerKind.DEPTHWISE else 1
    extent = (1,) * len(shape.extent)
    return LayerShape(shape.kind, IDLE_WIDTH, IDLE_WIDTH, extent, ones, ones, zeros, ones, groups)


def _rounds(
    shapes: Sequence[LayerShape], precision: Precision, format: str, runtime: RuntimeFacts
) -> list[list[Seconds | str]]:
    """In each round, what each layer took, or why nobody knows."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = ProbeNetwork(shapes).eval()
            example = tuple(map(input_of, shapes))
        program = capture(network, example)
        samples = store_split([(example, None)], example, "probe", Cache(scratch))
        chosen = tuple((site, Choice("quantize", precision)) for site in program.sites)
        candidate = Candidate(Recipe("probe", format, chosen), program, samples.folder, runtime)
        artifact = catalog.exporter(format).export(candidate, scratch)
        profiles = [
            list(catalog.runtime(artifact.runtime).kernels(artifact, samples))
            for _ in range(ROUNDS)
        ]
    places = [f"layers.{number}" for number in range(len(shapes))]
    return [[_seconds(runs, place, precision) for place in places] for runs in profiles]


def _seconds(runs: Sequence[KernelRun], site: str, precision: Precision) -> Seconds | str:
    """The time of all kernels of one layer; integer layers must have run on integer ones."""
    own = [run for run in runs if run.sites == (site,)]
    if not own:
        return UNNAMED
    if precision.is_integer and any(run.arithmetic is Arithmetic.FLOAT for run in own):
        return FLOATING
    return Seconds(sum(run.seconds for run in own))


def _overhead(idle: Sequence[Sequence[Seconds | str]]) -> Seconds:
    """The fastest round's mean of idle layers; zero where the profile names none of this kind."""
    rounds = [
        [value for value in values if not isinstance(value, str)]
        for values in zip(*idle, strict=True)
    ]
    return Seconds(min((statistics.fmean(values) for values in rounds if values), default=NOTHING))


def _timing(rounds: Sequence[Seconds | str], idle: Seconds) -> Timing:
    reasons = [value for value in rounds if isinstance(value, str)]
    if reasons:
        return Timing((), idle, reasons[0])
    return Timing(tuple(value for value in rounds if not isinstance(value, str)), idle)
