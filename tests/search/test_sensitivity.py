"""The survey finds the layers whose rounding changes the outputs, whatever runs around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_build
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, fx, nn

from edgebuild.cache import Cache
from edgebuild.search import sensitivity as sensitivity_module
from edgebuild.search.case import Case
from edgebuild.search.score import divergence
from edgebuild.search.sensitivity import (
    FEWEST_SAMPLES,
    MOST_SAMPLES,
    round_activations,
    round_weights,
    samples_for,
    sensitivity,
)
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.program import Site
from edgebuild.vocabulary.silence import Silence

PRECISION = Precision.INT8_STATIC
NUMBERS = st.floats(min_value=-100, max_value=100, width=32)
WEIGHTS = arrays(np.float32, (3, 4), elements=NUMBERS).map(torch.tensor)
VALUES = arrays(np.float32, (12,), elements=NUMBERS).map(torch.tensor)


def surveyed(network: nn.Module, like: Tensor, cache: Cache, count: int = 3) -> dict[str, float]:
    case = _case(network, like, cache, count)
    return {site.path: loss for site, loss in at_eight_bits(case).items()}


def at_eight_bits(case: Case) -> dict[Site, float]:
    """What each layer loses with calibrated activations and eight-bit weights."""
    found = sensitivity(case, Silence())
    return {site: loss for (site, chosen), loss in found.items() if chosen is PRECISION}


def _case(network: nn.Module, like: Tensor, cache: Cache, count: int = 3) -> Case:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(like.shape, generator=generator) for _ in range(2 * count)]
    workload = small_build.workload_of(network, like, drawn[:count], drawn[count:])
    return small_build.case_of(workload, cache)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(0)


# ---- the ranking


def test_every_layer_has_a_loss_and_rounding_a_sane_one_costs_little(case: Case) -> None:
    found = at_eight_bits(case)
    assert tuple(found) == case.program.sites
    assert all(0 <= loss < 0.01 for loss in found.values())


def test_a_layer_with_huge_outliers_is_the_most_sensitive(cache: Cache) -> None:
    """One weight of each channel takes the whole grid, and its input is always near zero."""
    network = small_build.network()
    with torch.no_grad():
        network[2].weight[:, 0, 0, 0] = 1e4  # type: ignore[index, union-attr]
        network[0].weight[0] = 0.0  # type: ignore[index, union-attr]
        network[0].bias[0] = 0.0  # type: ignore[index, union-attr]
    found = surveyed(network, torch.zeros(1, 1, 8, 8), cache)
    assert max(found, key=lambda path: found[path]) == "2"
    assert found["2"] > 10 * max(loss for path, loss in found.items() if path != "2")


def test_four_bits_cost_more_than_eight(case: Case) -> None:
    found = sensitivity(case, Silence())
    for site in case.program.sites:
        assert found[site, Precision.INT4_WEIGHTS] > found[site, PRECISION]


def test_weights_that_lie_on_the_grid_cost_only_their_inputs_rounding(cache: Cache) -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(4) * 127)
        network[1].weight.copy_(torch.rand(4, 4))
    like = torch.ones(1, 4)
    workload = small_build.workload_of(network, like, [like, -like], [2 * like])
    found = at_eight_bits(small_build.case_of(workload, cache))
    assert found[next(site for site in found if site.path == "0")] < 1e-3


# ---- layers ahead need not run again


class _InPlace(nn.Module):
    """Adds into a value that was computed ahead of the layers on its other branch."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(2, 4, 3, padding=1)
        self.skip = nn.Conv2d(2, 4, 1)
        self.middle = nn.Conv2d(2, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, image: Tensor) -> Tensor:
        image = image * 1.0
        outputs = torch.relu_(self.body(image))
        view = outputs.view(1, -1)
        outputs += self.skip(image)
        view *= 0.5
        image.mul_(2.0)
        outputs += self.middle(image)
        return self.head(outputs.mean((2, 3)))  # type: ignore[no-any-return]


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(3, 5), nn.LSTM(5, 6, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, series: Tensor) -> Tensor:
        return self.head(self.layer(self.first(series))[0][:, -1])  # type: ignore[no-any-return]


class _Shared(nn.Module):
    """One layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.between = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, values: Tensor) -> Tensor:
        return self.twice(torch.relu(self.between(self.twice(values))))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("make", "like"),
    [
        (small_build.network, torch.zeros(1, 1, 8, 8)),
        (_InPlace, torch.zeros(1, 2, 6, 6)),
        (_Recurrent, torch.zeros(1, 4, 3)),
        (_Shared, torch.zeros(1, 4)),
    ],
)
def test_what_is_reused_of_a_run_changes_no_loss(make: type, like: Tensor, cache: Cache) -> None:
    case = _case(make(), like, cache)
    found = at_eight_bits(case)
    expected = _from_the_start(case)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert min(expected.values()) > 0


def _from_the_start(case: Case) -> Mapping[Site, float]:
    """The same survey, every run from the first operator on and on inputs of its own."""

    def network() -> fx.GraphModule:
        return case.program.exported.module(check_guards=False)  # type: ignore[return-value]

    def rows() -> list[list[Tensor]]:
        return [[torch.tensor(array) for array in row] for row in case.calibration.rows()]

    watched = sensitivity_module._Watched(network())
    losses: dict[Site, float] = {}
    with torch.no_grad():
        wanted = [sensitivity_module._flat(watched.run(*row)) for row in rows()]
        for site, names in case.program.nodes.items():
            disturbed = sensitivity_module._Disturbed(
                network(), names, watched.ranges, sensitivity_module.ROUNDINGS[PRECISION]
            )
            got = [sensitivity_module._flat(disturbed.run(*row)) for row in rows()]
            each = [divergence(*pair) for pair in zip(got, wanted, strict=True)]
            losses[site] = float(np.mean(each))
    return losses


def test_a_survey_is_made_once(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    first = at_eight_bits(case)
    fail = small_build.failing(AssertionError("surveyed again"))
    monkeypatch.setattr(sensitivity_module, "_sensitivity", fail)
    assert at_eight_bits(case) == first


# ---- rounding


@given(weight=WEIGHTS, axis=st.sampled_from([0, 1, -1]))
def test_rounding_weights_errs_by_half_a_step_of_their_channel(weight: Tensor, axis: int) -> None:
    largest = weight.abs().amax(dim=1 - axis % 2, keepdim=True)
    error = (round_weights(weight, axis, 127) - weight).abs()
    assert (error <= largest / 127 / 2 * 1.001 + 1e-9).all()


@given(weight=WEIGHTS)
def test_rounding_keeps_zeros_signs_and_the_largest_weight(weight: Tensor) -> None:
    found = round_weights(weight, 0, 127)
    assert (found[weight == 0] == 0).all()
    assert (found * weight >= 0).all()
    np.testing.assert_allclose(found.abs().amax(1), weight.abs().amax(1), rtol=1e-5, atol=1e-9)


@given(weight=WEIGHTS)
def test_rounding_weights_again_changes_nothing(weight: Tensor) -> None:
    once = round_weights(weight, 0, 127)
    np.testing.assert_allclose(round_weights(once, 0, 127), once, rtol=1e-5, atol=1e-9)


@given(weight=WEIGHTS, factor=st.sampled_from([0.25, 0.5, 2.0, 1024.0]))
def test_scaled_weights_round_to_scaled_ones(weight: Tensor, factor: float) -> None:
    scaled = round_weights(weight * factor, 0, 127)
    tolerance = 1e-9 * max(factor, 1)
    np.testing.assert_allclose(scaled, round_weights(weight, 0, 127) * factor, atol=tolerance)


def test_a_vector_is_no_weight_to_round() -> None:
    bias = torch.tensor([0.1234, 100.0])
    assert round_weights(bias, 0, 127) is bias


@given(values=VALUES)
def test_rounding_activations_errs_by_at_most_a_step_inside_their_range(values: Tensor) -> None:
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    found = round_activations(values, low, high)
    step = max(high - low, 1e-12) / 255
    # The zero point is rounded too, so one end of the range may lie half a step outside the grid.
    assert ((found - values).abs() <= step * 1.01 + 1e-9).all()
    assert (found[values == 0] == 0).all()
    assert len(found.unique()) <= 256


@given(values=VALUES, low=st.floats(-10, 0), high=st.floats(0.1, 10))
def test_activations_outside_of_the_range_are_clipped_to_it(
    values: Tensor, low: float, high: float
) -> None:
    found = round_activations(values, low, high)
    step = (high - low) / 255
    assert found.min() >= low - step
    assert found.max() <= high + step


@given(values=VALUES)
def test_rounding_activations_keeps_their_order(values: Tensor) -> None:
    ordered = values.sort().values
    found = round_activations(ordered, -20.0, 60.0)
    assert (found.diff() >= 0).all()


def test_a_large_network_is_judged_by_fewer_samples_than_a_small_one(case: Case) -> None:
    small = samples_for(case.program)
    heavier = [replace(one, macs=one.macs * 10**7) for one in case.program.operators]
    large = samples_for(replace(case.program, operators=tuple(heavier)))
    assert (small, large) == (MOST_SAMPLES, FEWEST_SAMPLES)
