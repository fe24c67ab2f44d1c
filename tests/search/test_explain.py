"""Every site says what it got, why, and what a better choice would cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_search import CHANNELS, SHAPE, WIDTHS, linear, menu, seconds

from edgebuild.search.explain import explain
from edgebuild.search.menu import Limits
from edgebuild.search.plan import fastest, plan
from edgebuild.search.proposal import Proposal
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.units import Seconds


def test_each_site_says_what_it_got_and_what_better_would_cost() -> None:
    given = menu(*WIDTHS)
    cheap = plan(given, Limits(latency=1.3 * fastest(given).latency))
    assert cheap is not None
    proposal = Proposal("a test's", "onnx", cheap.reshaped, cheap.precisions)
    found = {site.path: site for site in explain(given, proposal)}
    quantized = next(site for site in found.values() if site.choice == "int8-dynamic")
    assert quantized.better == "fp32"
    assert quantized.costs > 0
    assert quantized.saves == pytest.approx(0.02)


def test_a_changed_part_is_priced_against_leaving_it_as_it_was() -> None:
    given = menu(*WIDTHS)
    precisions = dict.fromkeys(given.layers, Precision.FP32)
    found = explain(given, Proposal("a test's", "onnx", SHAPE, precisions))
    changed = next(site for site in found if site.choice.startswith("prune"))
    whole, narrow = linear(), linear(CHANNELS, 16)
    reader = linear(16, CHANNELS)
    spared = 2 * seconds(whole, Precision.FP32) - sum(
        seconds(shape, Precision.FP32) for shape in (narrow, reader)
    )
    assert changed.better == "as it was"
    assert changed.costs == pytest.approx(spared)


def test_a_changed_part_shares_its_time_with_its_layers() -> None:
    given = menu(*WIDTHS)
    precisions = dict.fromkeys(given.layers, Precision.FP32)
    found = explain(given, Proposal("a test's", "onnx", SHAPE, precisions))
    assert {one.choice.startswith("prune") for one in found if one.is_shared} == {True}
    assert not any(one.is_shared for one in found if one.choice == "fp32")


@pytest.mark.parametrize(
    ("others", "untaken"),
    [
        (0, "no candidate that was tried has it"),
        (1, "1 candidate that has it was measured, and not chosen"),
        (2, "2 candidates that have it were measured, and not chosen"),
    ],
)
def test_a_better_choice_that_costs_nothing_says_what_became_of_it(
    others: int, untaken: str
) -> None:
    # Integers that are no faster: the float layer loses less, and takes as long.
    given = replace(menu(*WIDTHS), seconds=lambda shape, precision: Seconds(1e-3))
    precisions = dict.fromkeys(given.layers, Precision.INT8_DYNAMIC)
    own = Proposal("a test's", "onnx", (), precisions)
    rival = replace(own, precisions=dict.fromkeys(given.layers, Precision.FP32))
    elsewhere = replace(rival, format="tflite")
    found = explain(given, own, [own, elsewhere, *[rival] * others])
    free = [one for one in found if one.better and one.costs <= 0]
    assert free
    assert {one.untaken for one in free} == {untaken}


def test_what_saves_no_more_than_noise_is_no_better_choice() -> None:
    given = menu(*WIDTHS)
    near = {path: {Precision.FP32: 0.0, Precision.INT8_DYNAMIC: 1e-6} for path in given.layers}
    precisions = dict.fromkeys(given.layers, Precision.INT8_DYNAMIC)
    found = explain(replace(given, precisions=near), Proposal("a test's", "onnx", (), precisions))
    assert {one.better for one in found} == {""}
