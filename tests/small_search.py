"""A small menu of linear layers, and trials, for all tests that search."""

from __future__ import annotations

from edgebuild.search.menu import Menu, Weighed
from edgebuild.search.proposal import Attempt, Proposal
from edgebuild.search.training import Training
from edgebuild.vocabulary.measurement import Evidence, Figure
from edgebuild.vocabulary.offer import NETWORK, Choice, LayerShape, Offer, Part, PartKind, macs
from edgebuild.vocabulary.precision import LayerKind, Precision
from edgebuild.vocabulary.recipe import Recipe
from edgebuild.vocabulary.trial import Trial
from edgebuild.vocabulary.units import Seconds
from edgebuild.vocabulary.verdict import BudgetLine, Status, Verdict

CHANNELS = 64
# The first channels of the menu kept, as a plan may have it.
SHAPE = ((Part("layers.0", PartKind.CHANNELS), Choice("prune", "keep 16 of 64")),)
STUDENT = Offer(NETWORK, Choice("student", "width 50 %"), {"layers.0": 32}, {"layers.1": 32})
TRAINING = Training(first=100.0, most=3000.0, step=1.0)


def linear(inputs: int = CHANNELS, outputs: int = CHANNELS) -> LayerShape:
    return LayerShape(LayerKind.LINEAR, inputs, outputs)


def seconds(shape: LayerShape, precision: Precision) -> Seconds:
    """A microsecond a layer, and a nanosecond for each multiplication of floats."""
    return Seconds(1e-6 + macs(shape) * (0.4e-9 if precision.is_integer else 1e-9))


def narrowed(producer: str, reader: str, kept: int, loss: float) -> Weighed:
    part = Part(producer, PartKind.CHANNELS)
    choice = Choice("prune", f"keep {kept} of {CHANNELS}")
    return Weighed(Offer(part, choice, {producer: kept}, {reader: kept}), loss)


def factorized(path: str, rank: int, loss: float) -> Weighed:
    thin = (linear(outputs=rank), linear(inputs=rank))
    part = Part(path, PartKind.LAYER)
    return Weighed(Offer(part, Choice("factorize", f"rank {rank}"), replaced={path: thin}), loss)


def skipped(path: str, loss: float) -> Weighed:
    part = Part(path, PartKind.BLOCK)
    return Weighed(Offer(part, Choice("prune", "skip"), removed=frozenset({path})), loss)


def menu(*offers: Weighed, count: int = 3, quantized: float = 0.02) -> Menu:
    """Linear layers one after the other."""
    paths = [f"layers.{number}" for number in range(count)]
    losses = {Precision.FP32: 0.0, Precision.INT8_DYNAMIC: quantized}
    layers = {path: (linear(),) for path in paths}
    return Menu(layers, offers, dict.fromkeys(paths, losses), seconds)


def tried(
    score: float,
    latency: float,
    evidence: Evidence = Evidence.MEASURED,
    breached: bool = False,
    divergence: float = 0.0,
) -> Trial:
    """A trial whose median latency is half its 99th percentile."""
    p50 = Figure(latency, Evidence.MEASURED, "here")
    p99 = Figure(2 * latency, evidence, "there")
    figures = {
        "score": Figure(score, Evidence.MEASURED, "here"),
        "accuracy_drop": Figure(1.0 - score, Evidence.MEASURED, "here"),
        "divergence": Figure(divergence, Evidence.MEASURED, "here"),
    }
    line = BudgetLine("latency_p99", 1.0, p99, Status.BREACHED if breached else Status.MET)
    recipe = Recipe(f"{score} in {latency}", "onnx", ())
    return Trial(recipe, {**figures, "latency_p50": p50, "latency_p99": p99}, Verdict((line,)))


def attempt(
    score: float,
    latency: float,
    steps: int = 0,
    integer: bool = False,
    divergence: float = 0.0,
) -> Attempt:
    """The menu's network, its first channels pruned where it was trained for some steps."""
    training = ((NETWORK, TRAINING.choice(steps)),) if steps else ()
    precision = Precision.INT8_DYNAMIC if integer else Precision.FP32
    precisions = {f"layers.{number}": precision for number in range(3)}
    shape = (*SHAPE, *training) if steps else ()
    trial = tried(score, latency, divergence=divergence)
    return Attempt(Proposal("a test's", "onnx", shape, precisions), trial)


WIDTHS = [narrowed("layers.0", "layers.1", kept, (1 - kept / CHANNELS) ** 2) for kept in (16, 32)]
