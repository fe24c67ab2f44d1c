"""Exports to ONNX: QDQ, dynamic and four-bit kernels of onnxruntime, one precision per layer."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import torch
from onnxruntime import InferenceSession
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from edgebuild.cache import Cache, default_root, digest
from edgebuild.exporters import _onnx_storage as storage
from edgebuild.exporters._onnx_graph import (
    Weights,
    forget_origins,
    gemm_to_matmul,
    separate_weights,
    weights_of_sites,
)
from edgebuild.exporters._onnx_static import (
    StaticLayers,
    clip_ranges,
    find_ranges,
    is_signed,
    quantize_layers,
)
from edgebuild.exporters._quiet import quiet
from edgebuild.exporters._refusal import refuse_without_kernel
from edgebuild.garbage import only_new_garbage
from edgebuild.samples import StoredSamples
from edgebuild.vocabulary.artifact import Artifact
from edgebuild.vocabulary.errors import NotExportable, ParityLost, PrecisionRefused
from edgebuild.vocabulary.precision import FOUR_BIT_BLOCK, LayerKind, Precision
from edgebuild.vocabulary.program import Site
from edgebuild.vocabulary.recipe import Candidate

# The oldest opset with four-bit types and blocked dequantization.
OPSET = 21
MISSING_OPERATOR = re.compile(r"No ONNX function found for <OpOverload\(op='([^']*)'")
# What another order of summation may change, of the largest output.
REWRITING_LIMIT = 1e-3
# Computes in int8 inside MatMulNBits; without it the kernel widens to float.
ACCURACY_LEVEL = 4

SIGNED_CAVEAT = "onnxruntime has no fast kernel for signed activations on x86-64"

NO_KERNEL: Mapping[tuple[LayerKind, Precision], str] = {
    (LayerKind.CONVOLUTION, Precision.INT8_DYNAMIC): "ConvInteger has no vectorized kernel",
    (LayerKind.DEPTHWISE, Precision.INT8_DYNAMIC): "ConvInteger has no vectorized kernel",
    (LayerKind.TRANSPOSED, Precision.INT8_STATIC): "ConvTranspose has no integer kernel",
    (LayerKind.TRANSPOSED, Precision.INT8_DYNAMIC): "ConvTranspose has no integer kernel",
    (LayerKind.TRANSPOSED, Precision.INT4_WEIGHTS): "ConvTranspose has no integer kernel",
    (LayerKind.RECURRENT, Precision.INT8_STATIC): "GRU and LSTM have no static integer kernel",
    (LayerKind.RECURRENT, Precision.INT8_DYNAMIC): "GRU has no integer kernel",
    (LayerKind.RECURRENT, Precision.INT4_WEIGHTS): "GRU and LSTM have no four-bit kernel",
    (LayerKind.EMBEDDING, Precision.INT8_STATIC): "a look-up computes nothing",
    (LayerKind.EMBEDDING, Precision.INT8_DYNAMIC): "a look-up computes nothing",
    (LayerKind.EMBEDDING, Precision.INT4_WEIGHTS): "a look-up computes nothing",
    (LayerKind.TRANSPOSED, Precision.INT16_ACTIVATIONS): "ConvTranspose has no integer kernel",
    (LayerKind.RECURRENT, Precision.INT16_ACTIVATIONS): "GRU and LSTM have no integer kernel",
    (LayerKind.EMBEDDING, Precision.INT16_ACTIVATIONS): "a look-up computes nothing",
}


@dataclass(frozen=True)
class Onnx:
    """The ONNX format, for onnxruntime's CPU kernels."""

    format: ClassVar[str] = "onnx"
    suffix: ClassVar[str] = ".onnx"
    runtime: ClassVar[str] = "onnxruntime"
    cache: Cache = field(default_factory=lambda: Cache(default_root()))

    def refusal(self, kind: LayerKind, precision: Precision) -> str:
        return NO_KERNEL.get((kind, precision), "")

    def export(self, candidate: Candidate, folder: Path) -> Artifact:
        precisions = candidate.recipe.precisions
        refuse_without_kernel(self, precisions)
        source = self._float_model(candidate)
        model = onnx.load(source)
        if _needs_plain_matmul(precisions):
            source = self._matmul_model(candidate, source)
            model = onnx.load(source)
        weights = weights_of_sites(model, candidate.program)
        model = _quantize_four_bit_linear(model, _nodes(weights, precisions, _is_four_bit_linear))
        model = _quantize_dynamic(model, _nodes(weights, precisions, _is_dynamic), folder)
        static = _static_layers(weights, precisions)
        if static.nodes:
            ranges = self._ranges(candidate, source)
            model = quantize_layers(model, static, candidate, ranges, folder)
        if not is_signed(candidate):
            storage.shift_shared_weights(model)
        storage.widen_at_load(model, _weights(weights, precisions, Precision.FP16))
        storage.store_as_fp8(model, _weights(weights, precisions, Precision.FP8_WEIGHTS))
        storage.store_as_signs(model, _weights(weights, precisions, Precision.BINARY_WEIGHTS))
        forget_origins(model)
        path = folder / f"model{self.suffix}"
        onnx.save(model, path)
        return Artifact(
            path=path,
            format=self.format,
            runtime=self.runtime,
            inputs=tuple(value.name for value in model.graph.input),
            outputs=tuple(value.name for value in model.graph.output),
            settings=_settings(candidate, static),
            minimum_runtime={"onnxruntime": _oldest_release(precisions)},
            caveat=SIGNED_CAVEAT if static.nodes and is_signed(candidate) else "",
            weights={name: site.path for name, (site, _) in weights.items()},
        )

    def _float_model(self, candidate: Candidate) -> Path:
        """The network in fp32, exported once for all recipes."""

        def make(folder: Path) -> None:
            _export_float(candidate, folder / "float.onnx")

        return self.cache.entry("onnx-float", candidate.program.fingerprint, make) / "float.onnx"

    def _matmul_model(self, candidate: Candidate, source: Path) -> Path:
        def make(folder: Path) -> None:
            model = onnx.load(source)
            gemm_to_matmul(model.graph)
            onnx.save(model, folder / "matmul.onnx")
            _refuse_other_meaning(source, folder / "matmul.onnx", candidate)

        return self.cache.entry("onnx-matmul", source.parent.name, make) / "matmul.onnx"

    def _ranges(self, candidate: Candidate, source: Path) -> Path:
        """The activations' ranges over the calibration samples, found once for all recipes."""

        def find(folder: Path) -> None:
            find_ranges(onnx.load(source), candidate, folder / "ranges.json")

        def clip(folder: Path) -> None:
            clip_ranges(onnx.load(source), candidate, found, folder / "ranges.json")

        key = digest(source.parent.name, candidate.calibration.name, candidate.runtime.activations)
        found = self.cache.entry("onnx-ranges", key, find) / "ranges.json"
        if not candidate.recipe.clips_activations:
            return found
        return self.cache.entry("onnx-clipped-ranges", key, clip) / "ranges.json"


def _export_float(candidate: Candidate, path: Path) -> None:
    try:
        with quiet(), torch.no_grad(), only_new_garbage(), _registry_kept():
            program = torch.onnx.export(
                candidate.program.exported, (), dynamo=True, opset_version=OPSET, verbose=False
            )
    except Exception as error:
        raise NotExportable(f"onnx: {_operator_in(error)}") from error
    assert program is not None
    model = program.model_proto
    separate_weights(model, candidate.program)
    onnx.save(model, path)


@contextmanager
def _registry_kept() -> Iterator[None]:
    """Lets torch read the signatures of its ONNX functions once; it takes a second every time."""
    module: Any = importlib.import_module("torch.onnx._internal.exporter._registration")
    original = module.ONNXRegistry.from_torchlib
    module.ONNXRegistry.from_torchlib = partial(_registry, original)
    try:
        yield
    finally:
        module.ONNXRegistry.from_torchlib = original


@cache
def _registry(read: Callable[..., Any], opset_version: int) -> Any:
    return read(opset_version=opset_version)


def _refuse_other_meaning(before: Path, after: Path, candidate: Candidate) -> None:
    """A rewritten graph computes what it did before, or is not used.

    Raises:
        ParityLost: its outputs differ by more than rounding.
    """
    row = next(StoredSamples.open(candidate.calibration).rows())
    outputs = []
    for path in (before, after):
        session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        outputs.append(session.run(None, dict(zip(names, row, strict=True))))
    for wanted, got in zip(*outputs, strict=True):
        if np.abs(wanted - got).max() > REWRITING_LIMIT * max(np.abs(wanted).max(), 1e-12):
            raise ParityLost("onnx: rewriting Gemm as MatMul changed the outputs")


def _operator_in(error: BaseException) -> str:
    """Names the operator, or else quotes the line that does, from the chain of errors."""
    lines: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        lines += str(cause).splitlines()
        cause = cause.__cause__ or cause.__context__
    missing = [operator for line in lines for operator in MISSING_OPERATOR.findall(line)]
    if missing:
        return f"no operator for {missing[0]}"
    named = [line for line in lines if "aten" in line]
    return (named or lines or [type(error).__name__])[0].strip()


def _static_layers(weights: Weights, precisions: Mapping[Site, Precision]) -> StaticLayers:
    """The layers with calibrated activations.

    Raises:
        PrecisionRefused: activations of eight and of sixteen bits in one file.
    """
    eight, wide = (_nodes(weights, precisions, chosen) for chosen in (_is_static, _is_wide))
    if eight and wide:
        raise PrecisionRefused(
            "onnx: int16-activations beside static layers with eight-bit activations; "
            "choose one of them for the whole network"
        )
    four_bit = [
        name
        for name in _weights(weights, precisions, Precision.INT4_WEIGHTS)
        if weights[name][0].kind is not LayerKind.LINEAR
    ]
    return StaticLayers(eight or wide, four_bit, has_wide_activations=bool(wide))


def _is_static(site: Site, precision: Precision) -> bool:
    four_bit_convolution = precision is Precision.INT4_WEIGHTS and site.kind in (
        LayerKind.CONVOLUTION,
        LayerKind.DEPTHWISE,
    )
    return precision is Precision.INT8_STATIC or four_bit_convolution


def _is_wide(site: Site, precision: Precision) -> bool:
    return precision is Precision.INT16_ACTIVATIONS


def _is_dynamic(site: Site, precision: Precision) -> bool:
    return precision is Precision.INT8_DYNAMIC


def _is_four_bit_linear(site: Site, precision: Precision) -> bool:
    return precision is Precision.INT4_WEIGHTS and site.kind is LayerKind.LINEAR


def _needs_plain_matmul(precisions: Mapping[Site, Precision]) -> bool:
    """Dynamic and four-bit kernels exist for MatMul, not for Gemm."""
    return any(
        _is_dynamic(site, chosen) or _is_four_bit_linear(site, chosen)
        for site, chosen in precisions.items()
    )


def _oldest_release(precisions: Mapping[Site, Precision]) -> str:
    """The first onnxruntime that computes such a model rightly.

    Found by running small networks on twelve minor releases, 1.17 to 1.32, on x86.
    """
    chosen = {(site.kind is LayerKind.LINEAR, precision) for site, precision in precisions.items()}
    if (False, Precision.INT4_WEIGHTS) in chosen:
        return "1.23.0"  # the first that casts four bits, which every four-bit convolution does
    if chosen & {(True, Precision.INT8_STATIC), (True, Precision.INT4_WEIGHTS)}:
        return "1.20.0"  # the first with QLinearMatMul at opset 21; 1.18 rounds MatMulNBits more
    return "1.18.0"  # the first with opset 21


def _nodes(
    weights: Weights,
    precisions: Mapping[Site, Precision],
    wanted: Callable[[Site, Precision], bool],
) -> list[str]:
    return [
        node
        for site, nodes in weights.values()
        if site in precisions and wanted(site, precisions[site])
        for node in nodes
    ]


def _weights(
    weights: Weights, precisions: Mapping[Site, Precision], precision: Precision
) -> list[str]:
    return [name for name, (site, _) in weights.items() if precisions.get(site) is precision]


def _quantize_four_bit_linear(model: onnx.ModelProto, nodes: list[str]) -> onnx.ModelProto:
    if not nodes:
        return model
    quantizer = MatMulNBitsQuantizer(
        model,
        bits=4,
        block_size=FOUR_BIT_BLOCK,
        is_symmetric=True,
        accuracy_level=ACCURACY_LEVEL,
        nodes_to_include=nodes,
    )
    with quiet():
        quantizer.process()
    quantized: onnx.ModelProto = quantizer.model.model
    return quantized


def _quantize_dynamic(model: onnx.ModelProto, nodes: list[str], folder: Path) -> onnx.ModelProto:
    if not nodes:
        return model
    path = folder / "dynamic.onnx"
    with quiet():
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=nodes,
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
    return _take(path)


def _take(path: Path) -> onnx.ModelProto:
    """Reads an intermediate model and removes its file."""
    model = onnx.load(path)
    path.unlink()
    return model


def _settings(candidate: Candidate, static: StaticLayers) -> dict[str, str]:
    """What onnxruntime must be told, so that integers do not overflow and float layers stay float.

    Without VNNI, x86 multiplies unsigned activations by signed weights in sixteen bits that
    saturate; told so, it takes slower kernels that do not. On a CPU with VNNI the loaders leave
    that out: there it would only be slow. Signed activations have no such kernels, and need none.
    """
    has_signed = bool(static.nodes) and is_signed(candidate)
    has_integers = any(precision.is_integer for precision in candidate.recipe.precisions.values())
    settings = {}
    if has_integers and not has_signed:
        settings["session.x64quantprecision"] = "1"
    if has_signed:
        # Signed activations fuse on every CPU only if they are allowed to.
        settings["session.qdqisint8allowed"] = "1"
    if static.nodes:
        # By itself it rounds the weights of a float convolution between integer layers, per tensor.
        switched_off = ["WeightBiasQuantization"]
        if static.has_wide_activations:
            # It would multiply in eight bits what was to have sixteen (MatMulNBits for MatMul).
            switched_off.append("QDQSelectorActionTransformer")
        settings["optimization.disable_specified_optimizers"] = ";".join(switched_off)
    return settings
