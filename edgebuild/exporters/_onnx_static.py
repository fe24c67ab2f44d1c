"""Inserts quantize-dequantize pairs around static ONNX layers, over calibrated ranges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.calibrate import TensorData, load_tensors_data, save_tensors_data

from edgebuild.exporters import _onnx_storage as storage
from edgebuild.exporters._clipping import Range, narrowed
from edgebuild.exporters._onnx_graph import integer_neighbors
from edgebuild.exporters._quiet import quiet
from edgebuild.samples import StoredSamples
from edgebuild.vocabulary.recipe import Candidate
from edgebuild.vocabulary.target import Activations

CALIBRATION_SAMPLES = 128


@dataclass(frozen=True)
class StaticLayers:
    """The nodes that get pairs, those of their weights that have four bits, and the wide ones.

    `has_wide_activations` is about all: sixteen bits instead of eight.
    """

    nodes: Sequence[str]
    four_bit: Sequence[str] = ()
    has_wide_activations: bool = False


def quantize_layers(
    model: onnx.ModelProto, layers: StaticLayers, candidate: Candidate, ranges: Path, folder: Path
) -> onnx.ModelProto:
    """The model with pairs around the given nodes, and around the glue that lies between them."""
    path = folder / "static.onnx"
    _quantize(model, path, layers, candidate, ranges)
    quantized = onnx.load(path)
    path.unlink()
    storage.pack_four_bit(quantized, [f"{name}_quantized" for name in layers.four_bit])
    return quantized


def find_ranges(model: onnx.ModelProto, candidate: Candidate, path: Path) -> None:
    """Writes every activation's range, from its smallest to its largest value on the samples."""
    unused = path.with_name("unused.onnx")
    _quantize(model, unused, None, candidate, path)
    unused.unlink()


def clip_ranges(model: onnx.ModelProto, candidate: Candidate, found: Path, path: Path) -> None:
    """Writes the ranges with rare extremes cut off."""
    stored = load_tensors_data(found)
    ranges = {name: _ends(data) for name, data in stored.items()}
    for name, ends in narrowed(ranges, _activations(model, ranges, candidate)).items():
        low, high = np.array(ends, np.float32)
        stored.data[name] = TensorData(lowest=low, highest=high)
    save_tensors_data(stored, path)


def is_signed(candidate: Candidate) -> bool:
    return candidate.runtime.activations is Activations.INT8


def _quantize(
    model: onnx.ModelProto,
    path: Path,
    layers: StaticLayers | None,
    candidate: Candidate,
    ranges: Path,
) -> None:
    """Without layers, all that can be has pairs, and ranges that are not there yet are found."""
    names = [value.name for value in model.graph.input]
    wide = layers is not None and layers.has_wide_activations
    overrides: dict[str, object] = {}
    nodes: list[str] | None = None
    if layers is not None:
        nodes = [*layers.nodes, *integer_neighbors(model.graph, layers.nodes)]
        overrides = {name: storage.four_bit_grid(model, name) for name in layers.four_bit}
    with quiet():
        quantize_static(
            model,
            path,
            _Reader(names, candidate),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=_activation_type(is_signed(candidate), wide),
            weight_type=QuantType.QInt8,
            nodes_to_quantize=nodes,
            calibration_cache_path=ranges,
            extra_options={"TensorQuantOverrides": overrides},
        )


def _activation_type(signed: bool, wide: bool) -> QuantType:
    if wide:
        return QuantType.QInt16 if signed else QuantType.QUInt16
    return QuantType.QInt8 if signed else QuantType.QUInt8


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Feeds the calibration samples, one by one."""

    def __init__(self, names: list[str], candidate: Candidate) -> None:
        samples = StoredSamples.open(candidate.calibration)
        self._rows = samples.rows(CALIBRATION_SAMPLES)
        self._names = names

    def get_next(self) -> dict[str, np.ndarray] | None:
        row = next(self._rows, None)
        return None if row is None else dict(zip(self._names, row, strict=True))


def _ends(data: TensorData) -> Range:
    low, high = data.range_value
    return float(low.item()), float(high.item())


def _activations(
    model: onnx.ModelProto, wanted: Mapping[str, object], candidate: Candidate
) -> Iterator[tuple[str, np.ndarray]]:
    """The values of the wanted tensors, sample after sample."""
    inputs = [value.name for value in model.graph.input]
    outputs = {value.name for value in model.graph.output}
    computed = [name for name in wanted if name not in inputs]
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    for name in computed:
        if name not in outputs:
            shown.graph.output.add(name=name)
    options = SessionOptions()
    options.log_severity_level = 3
    # What is optimized away could not be shown.
    options.graph_optimization_level = GraphOptimizationLevel.ORT_DISABLE_ALL
    session = InferenceSession(
        shown.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    reader = _Reader(inputs, candidate)
    while (feed := reader.get_next()) is not None:
        yield from feed.items()
        yield from zip(computed, session.run(computed, feed), strict=True)
