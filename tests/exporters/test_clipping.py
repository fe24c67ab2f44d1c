"""Ranges are narrowed where rare extremes cost more steps than they are worth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Subject, Workshop, export, outputs_of, uniform
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies
from torch import Tensor, nn
from zoo import Specimen

from edgebuild import catalog
from edgebuild.exporters._clipping import STEPS, narrowed
from edgebuild.vocabulary.offer import NETWORK, Choice
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.recipe import CLIP_ACTIVATIONS, Recipe

CLIPPED = ((NETWORK, Choice("round", CLIP_ACTIVATIONS)),)
VALUES = numpy_strategies.arrays(
    np.float32, st.integers(1, 200), elements=st.floats(-100, 100, width=32)
)


def range_of(values: np.ndarray) -> tuple[float, float]:
    ends = {"tensor": (float(values.min()), float(values.max()))}
    return narrowed(ends, [("tensor", values)])["tensor"]


def error(values: np.ndarray, low: float, high: float) -> float:
    """The mean squared error of eight bits over a range that holds zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = max((high - low) / STEPS, 1e-30)
    rounded = np.round(np.clip(values, low, high) / step) * step
    return float(np.square(rounded - values).mean())


@given(values=VALUES)
def test_a_range_holds_zero_and_is_never_wider_than_the_values(values: np.ndarray) -> None:
    low, high = range_of(values)
    assert min(values.min(), 0) <= low <= 0 <= high <= max(values.max(), 0)


def test_a_rare_extreme_is_given_up() -> None:
    values = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    values[0] = 30.0
    low, high = range_of(values)
    assert high < 15
    assert error(values, low, high) < error(values, values.min(), values.max()) / 2


@pytest.mark.parametrize("seed", range(4))
def test_evenly_spread_values_are_covered(seed: int) -> None:
    values = np.random.default_rng(seed).uniform(-1, 3, 10_000).astype(np.float32)
    np.testing.assert_allclose(range_of(values), (-1, 3), atol=0.05)


def test_zeros_do_not_count() -> None:
    values = np.random.default_rng(0).uniform(0, 1, 1000).astype(np.float32)
    many_zeros = np.concatenate([values, np.zeros(1_000_000, np.float32)])
    assert range_of(values) == range_of(many_zeros)


def test_a_tensor_of_zeros_has_an_empty_range() -> None:
    assert range_of(np.zeros(10, np.float32)) == (0, 0)


class Exponential(nn.Module):
    """Two layers behind an activation most of whose values are far below its largest."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(2, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(torch.exp(image))))


@pytest.fixture(scope="module")
def exponential(workshop: Workshop) -> Subject:
    return workshop.study(
        Specimen("exponential", Exponential().eval(), (torch.zeros(1, 2, 32, 32),))
    )


def decibels(subject: Subject, recipe: Recipe, folder: Path) -> float:
    folder.mkdir()
    (got,) = outputs_of(export(subject, recipe, folder), subject.held_out)
    (wanted,) = subject.expected
    return float(20 * np.log10(np.linalg.norm(wanted) / np.linalg.norm(wanted - got)))


@pytest.mark.parametrize("format_", catalog.names("exporters"))
def test_artifacts_that_clip_are_nearer_to_a_network_with_heavy_tails(
    exponential: Subject, format_: str, tmp_path: Path
) -> None:
    covering = uniform(exponential.program, format_, Precision.INT8_STATIC)
    clipping = replace(covering, reshaped=CLIPPED)
    before = decibels(exponential, covering, tmp_path / "covering")
    after = decibels(exponential, clipping, tmp_path / "clipping")
    assert after > before + 1


@pytest.mark.parametrize("option", ["clip-activations", "equalize, clip-activations int4"])
def test_a_recipe_says_by_its_rounding_whether_activations_are_clipped(option: str) -> None:
    plain = Recipe("a test's", "onnx", ())
    assert not plain.clips_activations
    assert not replace(plain, reshaped=((NETWORK, Choice("round", "clip")),)).clips_activations
    assert replace(plain, reshaped=((NETWORK, Choice("round", option)),)).clips_activations
