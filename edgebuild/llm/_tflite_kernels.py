"""Asks LiteRT's own profile on which kernels the layers of a language model ran here."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from edgebuild.runtimes.litert import LAYER, Litert
from edgebuild.samples import StoredSamples
from edgebuild.vocabulary.artifact import Arithmetic, Artifact
from edgebuild.vocabulary.errors import FellBackToFloat


def kernels_of_layers(file: Path, scratch: Path, *, integers: bool) -> Counter[str]:
    """How many layers of the prompt's signature ran on each kernel; times are of no interest.

    Raises:
        FellBackToFloat: integers were asked for, and a layer ran on something else.
        DeviceError: the runtime cannot run it.
    """
    _save_nothing(file, scratch)
    artifact = Artifact(file, "tflite", "litert", (), ())
    runs = Litert().kernels(artifact, StoredSamples.open(scratch))
    layers = [run for run in runs if LAYER.match(run.kernel)]
    other = [run for run in layers if run.arithmetic is not Arithmetic.INTEGER]
    if integers and other:
        raise FellBackToFloat(
            f"tflite: {len(other)} of {len(layers)} layers ran here on no integer kernel, the "
            f"first on {other[0].kernel}"
        )
    return Counter(run.kernel for run in layers)


def _save_nothing(file: Path, scratch: Path) -> None:
    """Inputs of zeros, as stored samples: the first signature's, in the file's order."""
    details = Interpreter(model_path=str(file)).get_input_details()
    for number, about in enumerate(details):
        zeros = np.zeros(about["shape"], about["dtype"])
        # The profiler takes a sample's row: the places of tokens are the one input without a batch.
        np.save(scratch / f"input-{number}.npy", zeros if zeros.ndim > 1 else zeros[None])
