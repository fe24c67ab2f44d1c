"""Predicts a latency from the target's facts alone: a roofline for every operator."""

from __future__ import annotations

from collections.abc import Mapping

from edgebuild.vocabulary.measurement import Evidence, Figure
from edgebuild.vocabulary.offer import LayerShape, activations, macs, weights
from edgebuild.vocabulary.precision import LayerKind, Precision
from edgebuild.vocabulary.program import Operator, Program, Site
from edgebuild.vocabulary.recipe import Recipe
from edgebuild.vocabulary.target import RuntimeFacts, Target
from edgebuild.vocabulary.units import Seconds

# No kernel reaches the roofline. Published ncnn latencies of MobileNetV2 and ResNet-50 on
# Raspberry Pi 4 and 5 are 0.9 to 6 times it (below 1 where Winograd saves multiplications).
TYPICAL, LOW, HIGH = 2.0, 0.8, 6.0
# What a runtime spends on calling one operator, in seconds; unsourced, so the interval is wide.
TYPICAL_CALL, HIGHEST_CALL = 10e-6, 50e-6
NOTE = "peak roofline × 2, not calibrated on the device"


def predict_latency(
    program: Program, recipe: Recipe, target: Target, runtime: RuntimeFacts
) -> Figure:
    """The latency of one inference on the target, in seconds, with the interval it may lie in.

    The roofline model of Williams et al. (CACM 52, 2009), summed over operators: each takes as
    long as its arithmetic at the peak rate or its memory traffic at the peak bandwidth.
    """
    precisions = recipe.precisions
    bound = sum(_seconds(op, precisions, target, runtime) for op in program.operators)
    calls = sum(operator.activations > 0 for operator in program.operators)
    return Figure(
        value=bound * TYPICAL + calls * TYPICAL_CALL,
        evidence=Evidence.PREDICTED,
        where=target.name,
        low=bound * LOW,
        high=bound * HIGH + calls * HIGHEST_CALL,
        note=NOTE,
    )


def predict_layer(
    shape: LayerShape, precision: Precision, target: Target, runtime: RuntimeFacts
) -> Seconds:
    """What one layer takes on the target: the same roofline, for a layer by itself."""
    work = macs(shape), weights(shape), activations(shape)
    operator = Operator("layer", Site("", shape.kind), *work)
    bound = _roofline(operator, precision, target, runtime)
    return Seconds(bound * TYPICAL + TYPICAL_CALL)


def predict_glue(program: Program, target: Target, runtime: RuntimeFacts) -> dict[str, Seconds]:
    """What the operators without weights take, by the path of the layer before them."""
    found: dict[str, Seconds] = {}
    path = ""
    for operator in program.operators:
        if operator.site is not None:
            path = operator.site.path
        elif operator.activations > 0:
            bound = _roofline(operator, Precision.FP32, target, runtime)
            found[path] = Seconds(found.get(path, 0.0) + bound * TYPICAL + TYPICAL_CALL)
    return found


def _seconds(
    operator: Operator,
    precisions: Mapping[Site, Precision],
    target: Target,
    runtime: RuntimeFacts,
) -> float:
    precision = precisions.get(operator.site, Precision.FP32) if operator.site else Precision.FP32
    return _roofline(operator, precision, target, runtime)


def _roofline(
    operator: Operator, precision: Precision, target: Target, runtime: RuntimeFacts
) -> float:
    rate = target.compute.int8 if precision.is_integer else target.compute.fp32
    share = min(runtime.threads / target.compute.cores, 1.0)
    is_four_bit_convolution = (
        precision is Precision.INT4_WEIGHTS
        and operator.site is not None
        and operator.site.kind in (LayerKind.CONVOLUTION, LayerKind.DEPTHWISE)
    )
    is_static = precision is Precision.INT8_STATIC or is_four_bit_convolution
    activation_bytes = 1 if is_static else 4
    traffic = operator.weights * precision.weight_bits / 8 + operator.activations * activation_bytes
    return max(2 * operator.macs / (rate * share), traffic / target.memory.bandwidth)
