"""Predicts a latency: from a probe of the device where the target has one, else by a roofline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgebuild.search.calibrated import Predictor, predictor
from edgebuild.vocabulary.artifact import KernelRun, KernelWork
from edgebuild.vocabulary.calibration import Load
from edgebuild.vocabulary.measurement import Evidence, Figure
from edgebuild.vocabulary.offer import LayerShape, activations, macs, weights
from edgebuild.vocabulary.precision import LayerKind, Precision
from edgebuild.vocabulary.program import Operator, Program, Site
from edgebuild.vocabulary.recipe import Recipe
from edgebuild.vocabulary.target import RuntimeFacts, Target
from edgebuild.vocabulary.units import Bytes, Seconds

# No kernel reaches the roofline. Published ncnn latencies of MobileNetV2 and ResNet-50 on
# Raspberry Pi 4 and 5 are 0.9 to 6 times it (below 1 where Winograd saves multiplications).
TYPICAL, LOW, HIGH = 2.0, 0.8, 6.0
# What a runtime spends on calling one operator, in seconds; unsourced, so the interval is wide.
TYPICAL_CALL, HIGHEST_CALL = 10e-6, 50e-6
# What one machine's runtime adds for the layout that its float kernels like; others do without.
LAYOUT = ("ReorderInput", "ReorderOutput")
NOTE = "peak roofline × 2, not calibrated on the device"


def predict_latency(
    program: Program,
    recipe: Recipe,
    target: Target,
    runtime: RuntimeFacts,
    runs: Sequence[KernelRun] = (),
) -> Figure:
    """The latency of one inference on the target, in seconds, with the interval it may lie in.

    The sum of what the artifact's kernels take by a probe of the device. Where there is none, the
    roofline model of Williams et al. (CACM 52, 2009), summed over operators: each takes as
    long as its arithmetic at the peak rate or its memory traffic at the peak bandwidth.

    Args:
        runs: the kernels of the artifact, as its runtime ran them here.
    """
    calibrated = _predictor(target, runtime)
    works = _works(runs, calibrated)
    if calibrated is not None and works:
        found = calibrated.network(works, load_of(program))
        note = f"{_source(target)}; of calls that nothing disturbs"
        if found.unknown:
            note += f"; never probed: {', '.join(found.unknown)}"
        return Figure(found.seconds, Evidence.PREDICTED, target.name, found.low, found.high, note)
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


def _source(target: Target) -> str:
    assert target.calibration is not None
    return f"from a probe of {target.calibration.device}, {target.calibration.taken_at}"


def _predictor(target: Target, runtime: RuntimeFacts) -> Predictor | None:
    probed = target.calibration.runtime(runtime.name) if target.calibration else None
    return predictor(probed) if probed is not None and probed.networks else None


def _works(runs: Sequence[KernelRun], calibrated: Predictor | None) -> list[KernelWork]:
    """The kernels' work on the target; empty where a kernel's is not known."""
    if calibrated is None or any(run.work is None for run in runs):
        return []
    return [run.work for run in runs if run.work is not None and _is_there(run.work, calibrated)]


def _is_there(work: KernelWork, calibrated: Predictor) -> bool:
    return work.form not in LAYOUT or calibrated.knows(work.kind)


def load_of(program: Program) -> Load:
    """What a call takes in and puts out."""
    signature = program.exported.graph_signature
    names = {*signature.user_inputs, *signature.user_outputs}
    values = [node.meta["val"] for node in program.exported.graph.nodes if node.name in names]
    size = sum(value.numel() * value.element_size() for value in values)
    return Load(len(values), Bytes(size))


def doubts(target: Target, runtime: RuntimeFacts, runs: Sequence[KernelRun]) -> list[str]:
    """What a probe of the device has to say of an artifact's kernels, line by line."""
    calibrated = _predictor(target, runtime)
    works = _works(runs, calibrated)
    if calibrated is None or not works:
        return []
    found = calibrated.network(works, Load(0, Bytes(0)))
    said = [f"{runtime.name}: never probed on {target.name}: {kind}" for kind in found.unknown]
    return said + [f"{runtime.name}: slow on {target.name}: {kernel}" for kernel in found.slow]


def retimed(runs: Sequence[KernelRun], target: Target, runtime: RuntimeFacts) -> list[KernelRun]:
    """The kernels of an artifact with their times on the target; empty where nobody probed it."""
    calibrated = _predictor(target, runtime)
    if calibrated is None or not _works(runs, calibrated):
        return []
    return [
        replace(run, seconds=Seconds(calibrated.kernel(run.work)[0]))
        for run in runs
        if run.work is not None and _is_there(run.work, calibrated)
    ]


def predict_call(program: Program, target: Target, runtime: RuntimeFacts) -> Seconds:
    """What a call takes beside its kernels; the roofline holds it already."""
    calibrated = _predictor(target, runtime)
    return Seconds(calibrated.call(load_of(program)) if calibrated else 0.0)


def predict_layer(
    shape: LayerShape, precision: Precision, target: Target, runtime: RuntimeFacts
) -> Seconds:
    """What one layer takes on the target: by a probe, or the same roofline for it by itself."""
    calibrated, layer = _predictor(target, runtime), work_of(shape, precision)
    if calibrated is not None and calibrated.knows(layer.kind):
        return Seconds(calibrated.kernel(layer)[0])
    work = macs(shape), weights(shape), activations(shape)
    operator = Operator("layer", Site("", shape.kind), *work)
    bound = _roofline(operator, precision, target, runtime)
    return Seconds(bound * TYPICAL + TYPICAL_CALL)


def work_of(shape: LayerShape, precision: Precision) -> KernelWork:
    """What the kernel of a layer has to do in a precision."""
    computed = _computed(shape, precision)
    size = 1 if computed is Precision.INT8_STATIC else 4
    positions = macs(shape) // max(weights(shape), 1)
    return KernelWork(
        form=_form(shape),
        numerics=str(computed),
        macs=macs(shape),
        weights=Bytes(round(weights(shape) * computed.weight_bits / 8)),
        read=Bytes(size * shape.inputs * math.prod(shape.extent)),
        written=Bytes(size * shape.outputs * positions),
        inputs=shape.inputs,
        outputs=shape.outputs,
    )


def _computed(shape: LayerShape, precision: Precision) -> Precision:
    """What a layer computes in that is stored in a precision."""
    if not precision.is_integer:
        return Precision.FP32
    is_convolution = shape.kind in (LayerKind.CONVOLUTION, LayerKind.DEPTHWISE)
    # onnxruntime widens four-bit weights of convolutions when it loads them.
    is_widened = is_convolution and precision is Precision.INT4_WEIGHTS
    return Precision.INT8_STATIC if is_widened else precision


def _form(shape: LayerShape) -> str:
    """As the runtimes' kernels are called."""
    if shape.kind is LayerKind.LINEAR:
        return "linear" if math.prod(shape.extent) > 1 else "linear of one row"
    if shape.kind is not LayerKind.CONVOLUTION:
        return str(shape.kind)
    if shape.groups > 1:
        return "grouped convolution"
    return "convolution 1x1" if math.prod(shape.kernel) == 1 else "convolution"


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
