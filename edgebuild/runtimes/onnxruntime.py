"""onnxruntime on the CPU: the census of its kernels, from its optimized graph and its profile."""

from __future__ import annotations

import importlib.metadata
import json
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import onnx
import onnxruntime

from edgebuild.samples import StoredSamples
from edgebuild.vocabulary.artifact import Arithmetic, Artifact, KernelRun
from edgebuild.vocabulary.units import Seconds

INTEGER_KERNELS = {
    "QLinearConv", "QGemm", "QLinearMatMul", "QLinearAdd", "QLinearMul", "QLinearConcat",
    "QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearSigmoid",
    "QLinearSoftmax", "QLinearWhere", "QLinearReduceMean", "QAttention", "MatMulInteger",
    "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "ConvInteger",
    "MatMulNBits",
}  # fmt: skip
CONVERSIONS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
INTEGER_TYPES = {"int8", "uint8"}
# What the runtime computes inside the float convolution before it.
FUSED = {"Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh"}
# Float convolutions in blocks of channels: their weights lose their names, and the kernel is named
# by the output that it had in the file.
BLOCKED = "_nchwc"
RUNS = 5


@dataclass(frozen=True)
class Onnxruntime:
    """The census runs with the session settings that the artifact is proven with."""

    name: ClassVar[str] = "onnxruntime"
    package: ClassVar[str] = "onnxruntime"

    def version(self) -> str:
        return importlib.metadata.version(self.package)

    def kernels(self, artifact: Artifact, samples: StoredSamples) -> Iterator[KernelRun]:
        with tempfile.TemporaryDirectory() as scratch:
            optimized, events = _profile(artifact, samples, Path(scratch))
        weights = {
            node.name: tuple(_sites(node.input, artifact.weights)) for node in optimized.graph.node
        }
        outputs = _sites_by_output(onnx.load(artifact.path), artifact.weights)
        for name, event in events.items():
            blocked = outputs.get(name.removesuffix(BLOCKED), ()) if BLOCKED in name else ()
            yield KernelRun(
                kernel=event.kernel,
                sites=blocked or weights.get(name, ()),
                arithmetic=_arithmetic(event),
                seconds=Seconds(statistics.median(event.seconds)),
            )


@dataclass
class _Event:
    """One node of the optimized graph, over all runs."""

    kernel: str
    reads_integers: bool
    seconds: list[float]


def _arithmetic(event: _Event) -> Arithmetic:
    if event.kernel in CONVERSIONS:
        return Arithmetic.CONVERSION
    if event.kernel in INTEGER_KERNELS or event.reads_integers:
        return Arithmetic.INTEGER
    return Arithmetic.FLOAT


def _profile(
    artifact: Artifact, samples: StoredSamples, scratch: Path
) -> tuple[onnx.ModelProto, Mapping[str, _Event]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(scratch / "profile")
    options.optimized_model_filepath = str(scratch / "optimized.onnx")
    for key, value in artifact.settings.items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(
        str(artifact.path), options, providers=["CPUExecutionProvider"]
    )
    row = next(samples.rows())
    for _ in range(RUNS):
        session.run(list(artifact.outputs), dict(zip(artifact.inputs, row, strict=True)))
    profile = json.loads(Path(session.end_profiling()).read_text())
    return onnx.load(scratch / "optimized.onnx"), _events(profile)


def _events(profile: Iterable[Mapping[str, object]]) -> Mapping[str, _Event]:
    found: dict[str, _Event] = {}
    for entry in profile:
        name, suffix, _ = str(entry["name"]).partition("_kernel_time")
        details = entry.get("args")
        if entry.get("cat") != "Node" or not suffix or not isinstance(details, dict):
            continue
        kernel = str(details["op_name"])
        types = [next(iter(kind), "") for kind in details.get("input_type_shape", [])]
        reads_integers = bool(types) and types[0] in INTEGER_TYPES
        event = found.setdefault(name, _Event(kernel, reads_integers, []))
        event.seconds.append(float(str(entry["dur"])) * 1e-6)
    return found


def _sites_by_output(
    model: onnx.ModelProto, weights: Mapping[str, str]
) -> Mapping[str, tuple[str, ...]]:
    """The sites that compute each tensor of the file, through what will be fused with them."""
    found: dict[str, tuple[str, ...]] = {}
    for node in model.graph.node:
        sites = tuple(_sites(node.input, weights))
        if node.op_type in FUSED:
            sites = found.get(node.input[0], ())
        found.update(dict.fromkeys(node.output, sites))
    return found


def _sites(inputs: Iterable[str], weights: Mapping[str, str]) -> Iterator[str]:
    """The sites whose weights a node reads; the runtime appends to names, as in `w_quantized`."""
    seen = set()
    for name in inputs:
        parts = name.split("_")
        for length in range(len(parts), 0, -1):
            site = weights.get("_".join(parts[:length]))
            if site is not None and site not in seen:
                seen.add(site)
                yield site
                break
