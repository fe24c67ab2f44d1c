"""Each runtime's own INT8, with the defaults of its own quantizer: what a user gets first."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import qtyping, quantizer, recipe
from onnxruntime.quantization import CalibrationDataReader, quantize_static

from edgebuild.samples import StoredSamples
from edgebuild.vocabulary.artifact import Artifact

SAMPLES = 64
SIGNATURE = "serving_default"


def quantized_by_default(whole: Artifact, samples: StoredSamples, folder: Path) -> Artifact:
    """The float artifact, quantized as its runtime's quantizer does unless told otherwise."""
    path = folder / f"default{whole.path.suffix}"
    make = {"onnx": _onnx, "tflite": _tflite}[whole.format]
    make(whole, samples, path)
    return replace(whole, path=path, settings={}, caveat="")


def _onnx(whole: Artifact, samples: StoredSamples, path: Path) -> None:
    quantize_static(whole.path, path, _Reader(whole, samples))


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, whole: Artifact, samples: StoredSamples) -> None:
        self._rows = samples.rows(SAMPLES)
        self._names = whole.inputs

    def get_next(self) -> dict[str, np.ndarray] | None:
        row = next(self._rows, None)
        return None if row is None else dict(zip(self._names, row, strict=True))


def _tflite(whole: Artifact, samples: StoredSamples, path: Path) -> None:
    worker = quantizer.Quantizer(str(whole.path), recipe.static_wi8_ai8())
    # Else inputs and outputs become integers too, and nobody's program fits the file any more.
    for border in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        worker.update_quantization_recipe(".*", border, algorithm_key="no_quantize")
    signatures = dict(_signatures(whole, samples))
    worker.quantize(worker.calibrate(signatures)).export_model(str(path))


def _signatures(whole: Artifact, samples: StoredSamples) -> Iterator[tuple[str, Any]]:
    """In the file's own types: token ids have become shorter on the way."""
    runner = Interpreter(model_path=str(whole.path)).get_signature_runner(SIGNATURE)
    types = {name: told["dtype"] for name, told in runner.get_input_details().items()}
    yield (
        SIGNATURE,
        [
            {
                name: value.astype(types[name], copy=False)
                for name, value in zip(whole.inputs, row, strict=True)
            }
            for row in samples.rows(SAMPLES)
        ],
    )
