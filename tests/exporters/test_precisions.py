"""Sixteen-bit activations and mere forms of storage are what they say they are in an artifact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Workshop, recipe_of, uniform

from edgebuild import catalog
from edgebuild.vocabulary.artifact import Arithmetic
from edgebuild.vocabulary.errors import PrecisionRefused
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.target import Activations

FORMATS = catalog.names("exporters")
WIDE = Precision.INT16_ACTIVATIONS
STORED = [precision for precision in Precision if precision.is_storage_only]


def decibels(wanted: np.ndarray, got: np.ndarray) -> float:
    return float(20 * np.log10(np.linalg.norm(wanted) / np.linalg.norm(wanted - got)))


@pytest.mark.parametrize("format_", FORMATS)
def test_sixteen_bit_activations_lose_less_than_eight_bit_ones(
    workshop: Workshop, format_: str
) -> None:
    (wanted,) = workshop.subject("vit").expected
    eight, sixteen = (
        workshop.outputs_of("vit", workshop.artifact("vit", format_, precision))[0]
        for precision in (Precision.INT8_STATIC, WIDE)
    )
    assert decibels(wanted, sixteen) > decibels(wanted, eight) + 2


@pytest.mark.parametrize("format_", FORMATS)
def test_no_kernel_claims_sixteen_bit_activations_as_integers(
    workshop: Workshop, format_: str
) -> None:
    kernels = workshop.kernels_of("vit", workshop.artifact("vit", format_, WIDE))
    assert not [run.kernel for run in kernels if run.arithmetic is Arithmetic.INTEGER]


def test_signed_activations_of_sixteen_bits_compute_the_same(
    workshop: Workshop, tmp_path: Path
) -> None:
    recipe = uniform(workshop.subject("residual-cnn").program, "onnx", WIDE)
    signed = workshop.export("residual-cnn", recipe, tmp_path, Activations.INT8)
    plain = workshop.artifact("residual-cnn", "onnx", WIDE)
    (wanted,), (got,) = (workshop.outputs_of("residual-cnn", one) for one in (plain, signed))
    np.testing.assert_allclose(got, wanted, atol=1e-3 * np.abs(wanted).max())


def test_eight_and_sixteen_bits_do_not_mix_in_one_onnx_file(
    workshop: Workshop, tmp_path: Path
) -> None:
    sites = workshop.subject("residual-cnn").program.sites
    precisions = dict.fromkeys(sites, WIDE) | {sites[0]: Precision.INT8_STATIC}
    with pytest.raises(PrecisionRefused, match="int16-activations beside static layers"):
        workshop.export("residual-cnn", recipe_of("onnx", precisions), tmp_path)


@pytest.mark.parametrize("precision", STORED)
def test_stored_layers_compute_in_float(workshop: Workshop, precision: Precision) -> None:
    kernels = workshop.kernels_of("gru", workshop.artifact("gru", "onnx", precision))
    assert {run.arithmetic for run in kernels} == {Arithmetic.FLOAT}


def test_the_biases_of_a_recurrent_layer_are_not_binary(workshop: Workshop) -> None:
    weights = workshop.artifact("gru", "onnx", Precision.BINARY_WEIGHTS).weights
    layers = {site.path for site in workshop.subject("gru").program.sites}
    assert set(weights.values()) == layers
    # The weights of the inputs and of the states, and the head's.
    assert len(weights) == 3
