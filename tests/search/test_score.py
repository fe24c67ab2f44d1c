"""Agreement, parity and divergence say how far outputs are from the network's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from edgebuild.search.score import agreement, divergence, loss_name, parity

NUMBERS = st.floats(min_value=-50, max_value=50, width=32)


def outputs_like(shapes: Sequence[tuple[int, ...]]) -> st.SearchStrategy[list[np.ndarray]]:
    each = [arrays(np.float32, shape, elements=NUMBERS) for shape in shapes]
    return st.tuples(*each).map(list)


SHAPES = st.lists(array_shapes(min_dims=2, max_dims=4, max_side=4), min_size=1, max_size=3)
OUTPUTS = SHAPES.flatmap(outputs_like)
PAIRS = SHAPES.flatmap(lambda shapes: st.tuples(outputs_like(shapes), outputs_like(shapes)))


# ---- agreement


def test_classes_agree_by_the_share_of_equal_first_ones() -> None:
    reference = [np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])]
    outputs = [np.array([[0.0, 9.0], [0.6, 0.5], [0.1, 0.2], [0.3, 0.4]])]
    assert agreement(outputs, reference) == 0.75


def test_other_outputs_agree_by_their_relative_error() -> None:
    reference = [np.full((2, 3, 4), 2.0)]
    assert agreement([reference[0] * 0.9], reference) == pytest.approx(0.9)
    assert agreement([reference[0] * 5], reference) == 0.0


@given(pair=PAIRS)
def test_agreement_is_a_share(pair: tuple[list[np.ndarray], list[np.ndarray]]) -> None:
    assert 0.0 <= agreement(*pair) <= 1.0


@given(outputs=OUTPUTS)
def test_equal_outputs_agree_in_full(outputs: list[np.ndarray]) -> None:
    assert agreement(outputs, outputs) == 1.0


# ---- parity


def test_parity_of_a_known_error() -> None:
    found = parity([np.array([[1.0, 3.0]])], [np.array([[1.0, 4.0]])])
    assert (found.samples, found.max_error, found.relative_error) == (1, 1.0, 0.25)
    assert found.signal_to_noise == pytest.approx(10 * np.log10(17))


def test_a_small_output_counts_by_its_own_scale() -> None:
    reference = [np.full((1, 2), 100.0), np.full((1, 2), 0.1)]
    outputs = [np.full((1, 2), 101.0), np.full((1, 2), 0.05)]
    assert parity(outputs, reference).relative_error == pytest.approx(0.5)


@given(outputs=OUTPUTS)
def test_equal_outputs_have_no_error(outputs: list[np.ndarray]) -> None:
    found = parity(outputs, outputs)
    assert (found.max_error, found.relative_error) == (0.0, 0.0)


@given(pair=PAIRS, factor=st.floats(0.1, 0.9))
def test_less_error_is_a_better_parity(
    pair: tuple[list[np.ndarray], list[np.ndarray]], factor: float
) -> None:
    outputs, reference = ([array.astype(np.float64) for array in arrays] for arrays in pair)
    nearer = [b + factor * (a - b) for a, b in zip(outputs, reference, strict=True)]
    far, near = parity(outputs, reference), parity(nearer, reference)
    assert near.relative_error <= far.relative_error
    assert near.signal_to_noise >= far.signal_to_noise


# ---- divergence


@given(outputs=OUTPUTS)
def test_equal_outputs_do_not_diverge(outputs: list[np.ndarray]) -> None:
    assert divergence(outputs, outputs) == 0.0


@given(pair=PAIRS)
def test_a_divergence_is_finite_and_never_negative(
    pair: tuple[list[np.ndarray], list[np.ndarray]],
) -> None:
    found = divergence(*pair)
    assert np.isfinite(found)
    assert found >= -1e-12


@given(
    wanted=arrays(np.float64, (2, 3), elements=st.floats(-5, 5)),
    place=st.tuples(st.integers(0, 1), st.integers(0, 2)),
    change=st.floats(0.1, 5) | st.floats(-5, -0.1),
)
def test_other_probabilities_diverge(
    wanted: np.ndarray, place: tuple[int, int], change: float
) -> None:
    got = wanted.copy()
    got[place] += change
    assert divergence([got], [wanted]) > 0


@given(logits=outputs_like([(3, 4)]), shift=st.floats(-20, 20))
def test_a_constant_added_to_all_logits_changes_no_probability(
    logits: list[np.ndarray], shift: float
) -> None:
    assert divergence([np.float64(logits[0]) + shift], logits) == pytest.approx(0, abs=1e-9)


def test_the_divergence_of_known_probabilities() -> None:
    wanted, got = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert divergence([got], [wanted]) == pytest.approx(expected)


def test_the_divergence_of_other_outputs_is_their_error_by_their_variance() -> None:
    wanted = np.array([[[0.0, 2.0]]])
    assert divergence([wanted + 1.0], [wanted]) == pytest.approx(0.5)
    assert divergence([10 * wanted + 10.0], [10 * wanted]) == pytest.approx(0.5)


def test_every_output_counts() -> None:
    wanted = [np.array([[0.0, 1.0]]), np.array([[[0.0, 2.0]]])]
    for changed in range(2):
        got = [array.copy() for array in wanted]
        got[changed][..., 0] += 1.0
        assert divergence(got, wanted) > 0.1


@pytest.mark.parametrize(
    ("shapes", "name"),
    [
        ([(4, 3)], ""),
        ([(4, 1)], "squared error over twice the outputs' variance"),
        (
            [(4, 3), (4, 2, 2)],
            "KL of the classes, and squared error over twice the outputs' variance of the rest",
        ),
    ],
)
def test_the_loss_that_is_used_has_a_name(shapes: list[tuple[int, ...]], name: str) -> None:
    assert loss_name([np.zeros(shape) for shape in shapes]) == name
