"""Exports to TFLite: XNNPACK's static, dynamic and four-bit kernels, one precision per layer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import quantizer
from ai_edge_quantizer.calibrator import Calibrator
from ai_edge_quantizer.recipe_manager import RecipeManager
from ai_edge_quantizer.utils.qsv_utils import min_max_update

from edgebuild.cache import Cache, default_root, digest
from edgebuild.exporters._clipping import narrowed
from edgebuild.exporters._quiet import quiet
from edgebuild.exporters._refusal import refuse_without_kernel
from edgebuild.exporters._tflite_graph import Graph, flatten_biases, node_names
from edgebuild.exporters._tflite_recipe import add_rules
from edgebuild.garbage import only_new_garbage
from edgebuild.samples import StoredSamples
from edgebuild.vocabulary.artifact import Artifact
from edgebuild.vocabulary.errors import NotExportable, PrecisionRefused, first_line
from edgebuild.vocabulary.precision import LayerKind, Precision
from edgebuild.vocabulary.program import Program
from edgebuild.vocabulary.recipe import Candidate

CALIBRATION_SAMPLES = 64

# Statistics of a tensor ("min", "max") by its name.
Ranges = dict[str, dict[str, Any]]
MISSING_OPERATOR = re.compile(r"Lowering not found: (\w+\.\w+)")
UNKNOWN_OPERATOR = re.compile(r"builtin opcode '(\w+)'")

NO_KERNEL: Mapping[tuple[LayerKind, Precision], str] = {
    (LayerKind.CONVOLUTION, Precision.INT4_WEIGHTS): "XNNPACK has no four-bit convolution",
    (LayerKind.DEPTHWISE, Precision.INT4_WEIGHTS): "XNNPACK has no four-bit convolution",
    (LayerKind.DEPTHWISE, Precision.INT8_DYNAMIC): "XNNPACK has no dynamic depthwise convolution",
    (LayerKind.TRANSPOSED, Precision.INT4_WEIGHTS): "XNNPACK has no four-bit deconvolution",
    (LayerKind.RECURRENT, Precision.INT8_STATIC): "a state rounded at every step drifts",
    (LayerKind.EMBEDDING, Precision.INT8_STATIC): "a look-up computes nothing",
    (LayerKind.EMBEDDING, Precision.INT8_DYNAMIC): "a look-up computes nothing",
    (LayerKind.EMBEDDING, Precision.INT4_WEIGHTS): "a look-up computes nothing",
    (LayerKind.RECURRENT, Precision.INT16_ACTIVATIONS): "a state rounded at every step drifts",
    (LayerKind.EMBEDDING, Precision.INT16_ACTIVATIONS): "a look-up computes nothing",
}
NO_STORAGE: Mapping[Precision, str] = {
    Precision.FP8_WEIGHTS: "LiteRT does not widen eight-bit floats",
    Precision.BINARY_WEIGHTS: "LiteRT does not widen single bits",
}
# Found by running small networks on fifteen releases, 1.0.1 to 2.3.0, on x86. Of ai-edge-litert,
# every release from 1.4.0 on is right for every precision; 1.1 to 1.3 compute fp16 convolutions as
# NaN or noise, mostly without a word. tflite-runtime 2.14, the last of its name, is right for fp32,
# fp16 and static layers, whose integers it rounds in other places; dynamic per-channel layers and
# linear ones with sixteen-bit activations it computes wrongly and says nothing.
SINCE_DYNAMIC = {"ai-edge-litert": "1.4.0"}
MODERN = {Precision.INT8_DYNAMIC, Precision.INT4_WEIGHTS, Precision.INT16_ACTIVATIONS}
SINCE_STATIC = {"ai-edge-litert": "1.4.0", "tflite-runtime": "2.14.0"}


@dataclass(frozen=True)
class Tflite:
    """The TFLite format, for LiteRT's CPU kernels (XNNPACK)."""

    format: ClassVar[str] = "tflite"
    suffix: ClassVar[str] = ".tflite"
    runtime: ClassVar[str] = "litert"
    cache: Cache = field(default_factory=lambda: Cache(default_root()))

    def refusal(self, kind: LayerKind, precision: Precision) -> str:
        return NO_STORAGE.get(precision) or NO_KERNEL.get((kind, precision), "")

    def export(self, candidate: Candidate, folder: Path) -> Artifact:
        refuse_without_kernel(self, candidate.recipe.precisions)
        source = self._float_model(candidate.program)
        graph = Graph.read(source, candidate.program)
        wanted = {site.path: chosen for site, chosen in candidate.recipe.precisions.items()}
        path = folder / f"model{self.suffix}"
        with quiet():
            worker = quantizer.Quantizer(str(source))
            add_rules(worker, graph, candidate.recipe.precisions)
            if any(precision is not Precision.FP32 for precision in wanted.values()):
                ranges = self._ranges(candidate, source) if worker.need_calibration else None
                worker.quantize(ranges).export_model(str(path))
            else:
                path.write_bytes(source.read_bytes())
        finished = Graph.read(path, candidate.program)
        _refuse_other_precisions(graph, finished, wanted)
        modern = MODERN & set(wanted.values())
        return Artifact(
            path=path,
            format=self.format,
            runtime=self.runtime,
            inputs=graph.input_names,
            outputs=graph.output_names,
            minimum_runtime=SINCE_DYNAMIC if modern else SINCE_STATIC,
            weights=finished.layers_in_order(),
        )

    def _float_model(self, program: Program) -> Path:
        """The network in fp32, converted once for all recipes."""

        def make(folder: Path) -> None:
            _convert(program, folder / "float.tflite")
            flatten_biases(folder / "float.tflite")
            _refuse_unknown_operators(folder / "float.tflite", program)

        return self.cache.entry("tflite-float", program.fingerprint, make) / "float.tflite"

    def _ranges(self, candidate: Candidate, source: Path) -> Ranges:
        """The tensors' ranges over the calibration samples, found once for all recipes."""

        def find(folder: Path) -> None:
            _save(_calibrated(candidate, source), folder / "ranges.npz")

        def clip(folder: Path) -> None:
            _save(_clipped(found, candidate, source), folder / "ranges.npz")

        key = digest(candidate.program.fingerprint, candidate.calibration.name)
        found = _load(self.cache.entry("tflite-ranges", key, find) / "ranges.npz")
        if not candidate.recipe.clips_activations:
            return found
        return _load(self.cache.entry("tflite-clipped-ranges", key, clip) / "ranges.npz")


def _convert(program: Program, path: Path) -> None:
    example, _ = program.exported.example_inputs
    with quiet(), node_names(), only_new_garbage():
        # Imported here: it brings JAX along, seconds that a cached build does not need.
        import litert_torch

        try:
            network = program.exported.module(check_guards=False)
            litert_torch.convert(network, tuple(t.clone() for t in example)).export(str(path))
        except Exception as error:
            raise NotExportable(f"tflite: {_reason(error)}") from error


def _refuse_unknown_operators(path: Path, program: Program) -> None:
    """The converter writes operators that the runtime does not have; loading tells.

    Raises:
        NotExportable: names the runtime's operator and the network's that became it.
    """
    try:
        with quiet():
            Interpreter(model_path=str(path)).allocate_tensors()
    except (RuntimeError, ValueError) as error:
        unknown = UNKNOWN_OPERATOR.search(str(error))
        if unknown is None:
            raise NotExportable(f"tflite: LiteRT cannot load it: {first_line(error)}") from error
        origin = ", ".join(Graph.read(path, program).origins(unknown[1]))
        raise NotExportable(f"tflite: LiteRT has no operator {unknown[1]} (of {origin})") from error


def _reason(error: Exception) -> str:
    """Names the operator, or else quotes the line of the converter's message that does."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    missing = [operator for line in lines for operator in MISSING_OPERATOR.findall(line)]
    if missing:
        return f"no operator for {missing[0]}"
    named = [line for line in lines if "aten" in line]
    return (named or lines or [type(error).__name__])[0]


def _calibrated(candidate: Candidate, source: Path) -> Ranges:
    """Each tensor's range over the calibration samples, of all tensors that could be integers."""
    graph = Graph.read(source, candidate.program)
    recipe = RecipeManager()
    static = Precision.INT8_STATIC
    quantizable = [s for s in candidate.program.sites if not NO_KERNEL.get((s.kind, static))]
    add_rules(recipe, graph, dict.fromkeys(quantizable, static))
    rows = StoredSamples.open(candidate.calibration).rows(CALIBRATION_SAMPLES)
    calibrator = Calibrator(source.read_bytes(), num_threads=1, qsv_update_func=_wider)
    calibrator.calibrate({graph.signature: [graph.named_inputs(row) for row in rows]}, recipe)
    ranges: Ranges = calibrator.get_model_qsvs()
    return ranges


def _wider(known: dict[str, Any], seen: dict[str, Any]) -> dict[str, Any]:
    """By itself the quantizer averages ranges, and cuts off whatever exceeds the first."""
    return dict(min_max_update(known, seen)) if known and seen else seen


def _clipped(found: Ranges, candidate: Candidate, source: Path) -> Ranges:
    """The ranges with rare extremes cut off; weights keep theirs."""
    with quiet():
        interpreter = Interpreter(model_path=str(source), experimental_preserve_all_tensors=True)
        interpreter.allocate_tensors()
    wanted = {
        detail["name"]: detail["index"]
        for detail in interpreter.get_tensor_details()
        if found.get(detail["name"]) and found[detail["name"]]["min"].size == 1
    }
    ends = {
        name: (float(found[name]["min"].item()), float(found[name]["max"].item()))
        for name in wanted
    }
    best = narrowed(ends, _activations(interpreter, wanted, candidate, source))
    return found | {
        name: {
            **found[name],
            "min": np.full_like(found[name]["min"], low),
            "max": np.full_like(found[name]["max"], high),
        }
        for name, (low, high) in best.items()
    }


def _activations(
    interpreter: Any, wanted: Mapping[str, int], candidate: Candidate, source: Path
) -> Iterator[tuple[str, np.ndarray]]:
    """The values of the wanted tensors, sample after sample."""
    graph = Graph.read(source, candidate.program)
    run = interpreter.get_signature_runner(graph.signature)
    for row in StoredSamples.open(candidate.calibration).rows(CALIBRATION_SAMPLES):
        run(**graph.named_inputs(row))
        for name, index in wanted.items():
            yield name, interpreter.get_tensor(index)


def _save(ranges: Ranges, path: Path) -> None:
    arrays = {f"{key} {name}": end for name, seen in ranges.items() for key, end in seen.items()}
    np.savez(path, **arrays)


def _load(path: Path) -> Ranges:
    ranges: Ranges = {}
    with np.load(path) as stored:
        for label in stored.files:
            key, _, name = label.partition(" ")
            ranges.setdefault(name, {})[key] = stored[label]
    return ranges


def _refuse_other_precisions(before: Graph, after: Graph, wanted: Mapping[str, Precision]) -> None:
    """Compares every layer in the file with its recipe: the quantizer skips in silence.

    Raises:
        PrecisionRefused: a layer that is stored in another way than was chosen.
    """
    if before.interface != after.interface:
        raise PrecisionRefused("tflite: quantization would change the types of inputs or outputs")
    names = [operator.name for operator in before.weighted]
    if names != [operator.name for operator in after.weighted]:
        raise PrecisionRefused("tflite: quantization changed the sequence of layers")
    wrong = [
        f"{old.site} ({old.name}) is stored as {after.storage(new)}, not {wanted[old.site]}"
        for old, new in zip(before.weighted, after.weighted, strict=True)
        if old.site in wanted and after.storage(new) != wanted[old.site]
    ]
    if wrong:
        raise PrecisionRefused(f"tflite: {'; '.join(wrong)}")
