"""The solver finds what trying everything would find, and keeps every limit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_search import CHANNELS, factorized, linear, menu, narrowed, seconds, skipped

from edgebuild.methods._factorize_forms import Separable
from edgebuild.search import integer_program
from edgebuild.search.integer_program import GAP
from edgebuild.search.menu import Limits, Menu, Plan, Weighed, offers_of, settle
from edgebuild.search.plan import appraise, fastest, nearest, plan
from edgebuild.vocabulary.offer import Choice, LayerShape, Offer, Part, PartKind, weights
from edgebuild.vocabulary.precision import LayerKind, Precision
from edgebuild.vocabulary.units import Seconds


def everything(menu: Menu) -> Iterator[tuple[float, float, float]]:
    """Loss, latency and bytes of every combination there is."""
    parts: dict[Part, list[Weighed | None]] = {}
    for weighed in menu.offers:
        parts.setdefault(weighed.offer.part, [None]).append(weighed)
    for picked in itertools.product(*parts.values()):
        taken = [weighed for weighed in picked if weighed]
        settled = settle(menu, [weighed.offer for weighed in taken])
        for precisions in itertools.product(*(menu.precisions[p] for p in settled.layers)):
            chosen = dict(zip(settled.layers, precisions, strict=True))
            yield (
                sum(w.loss for w in taken)
                + sum(menu.precisions[path][precision] for path, precision in chosen.items()),
                sum(
                    seconds(shape, chosen[path])
                    for path, shapes in settled.layers.items()
                    for shape in shapes
                ),
                sum(
                    weights(shape) * chosen[path].weight_bits / 8
                    for path, shapes in settled.layers.items()
                    for shape in shapes
                ),
            )


OFFERS = st.lists(
    st.one_of(
        st.builds(
            narrowed,
            st.just("layers.0"),
            st.just("layers.1"),
            st.sampled_from([16, 32, 48]),
            st.floats(0.001, 1),
        ),
        st.builds(
            narrowed,
            st.just("layers.1"),
            st.just("layers.2"),
            st.sampled_from([16, 32]),
            st.floats(0.001, 1),
        ),
        st.builds(
            factorized, st.sampled_from(["layers.1", "layers.2"]), st.sampled_from([8, 16]),
            st.floats(0.001, 1),
        ),
        st.builds(skipped, st.just("layers.2"), st.floats(0.001, 1)),
    ),
    max_size=6,
    unique_by=lambda weighed: (weighed.offer.part, weighed.offer.choice),
)  # fmt: skip


@given(offers=OFFERS, place=st.floats(0.02, 0.98), quantized=st.floats(0.001, 0.5))
def test_no_combination_within_the_limit_loses_less(
    offers: list[Weighed], place: float, quantized: float
) -> None:
    given_menu = menu(*offers, quantized=quantized)
    tried = list(everything(given_menu))
    low, high = min(t for _, t, _ in tried), max(t for _, t, _ in tried)
    limit = low + place * (high - low) + 1e-9
    found = plan(given_menu, Limits(latency=limit))
    assert found is not None
    least = min(loss for loss, latency, _ in tried if latency <= limit)
    assert sum(found.losses.values()) <= least * (1 + GAP) + 1e-4
    assert found.latency <= limit * (1 + 1e-6)


@given(offers=OFFERS, place=st.floats(0.02, 0.98), quantized=st.floats(0.001, 0.5))
def test_where_the_time_is_up_the_least_loss_is_nearly_found(
    offers: list[Weighed], place: float, quantized: float
) -> None:
    given_menu = menu(*offers, quantized=quantized)
    tried = list(everything(given_menu))
    low, high = min(t for _, t, _ in tried), max(t for _, t, _ in tried)
    limit = low * (1 + 2 * GAP) + place * (high - low)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(integer_program, "TIME_LIMIT", 0.0)
        found = plan(given_menu, Limits(latency=limit))
    assert found is not None
    assert found.latency <= limit * (1 + 1e-5)
    # What costs least is found to a share as well, and so what keeps a limit that is as tight.
    within = [loss for loss, latency, _ in tried if latency <= limit * (1 - 2 * GAP)]
    assert sum(found.losses.values()) <= min(within, default=math.inf) * 1.2 + 1e-4


@given(offers=OFFERS)
def test_the_fastest_is_as_fast_as_can_be(offers: list[Weighed]) -> None:
    given_menu = menu(*offers)
    assert fastest(given_menu).latency == pytest.approx(
        min(latency for _, latency, _ in everything(given_menu)), rel=2 * GAP
    )


@given(offers=OFFERS, loss=st.floats(0.0, 0.5))
def test_the_fastest_of_those_that_lose_little_is_as_fast_as_can_be(
    offers: list[Weighed], loss: float
) -> None:
    given_menu = menu(*offers)
    kept = [latency for lost, latency, _ in everything(given_menu) if lost <= loss]
    assert fastest(given_menu, loss).latency == pytest.approx(min(kept), rel=2 * GAP)


def test_where_all_lose_too_much_the_fastest_is_the_fastest_of_all() -> None:
    rounded = menu(quantized=0.02)
    losses = {path: {Precision.INT8_DYNAMIC: 0.02} for path in rounded.layers}
    rounded = replace(rounded, precisions=losses)
    assert fastest(rounded, 0.01) == fastest(rounded)


@given(offers=OFFERS, share=st.floats(0.2, 1.0))
def test_a_limit_on_storage_is_kept(offers: list[Weighed], share: float) -> None:
    given_menu = menu(*offers)
    sizes = [size for _, _, size in everything(given_menu)]
    limit = max(min(sizes), share * max(sizes))
    found = plan(given_menu, Limits(storage=limit))
    assert found is not None
    assert found.storage <= limit + 1


def test_a_limit_on_memory_counts_the_weights_and_the_largest_activations() -> None:
    given_menu = menu(narrowed("layers.0", "layers.1", 16, 0.1))
    whole = plan(given_menu, Limits())
    assert whole is not None
    assert whole.memory == whole.storage + 4 * 2 * CHANNELS
    found = plan(given_menu, Limits(memory=0.5 * whole.memory))
    assert found is not None
    assert found.memory <= 0.5 * whole.memory
    assert sum(found.losses.values()) > 0


def test_without_limits_nothing_is_lost() -> None:
    found = plan(menu(narrowed("layers.0", "layers.1", 16, 0.1)), Limits())
    assert found is not None
    assert found.reshaped == ()
    assert set(found.precisions.values()) == {Precision.FP32}


def test_a_limit_that_nothing_keeps_has_no_plan() -> None:
    assert plan(menu(), Limits(latency=1e-9)) is None


@given(offers=OFFERS, slow=st.floats(0.05, 0.9), large=st.floats(0.05, 0.9))
def test_the_nearest_exceeds_its_worst_limit_least(
    offers: list[Weighed], slow: float, large: float
) -> None:
    given_menu = menu(*offers)
    tried = [(latency, size) for _, latency, size in everything(given_menu)]
    limits = Limits(
        latency=slow * min(latency for latency, _ in tried),
        storage=large * min(size for _, size in tried),
    )
    found = nearest(given_menu, limits)
    least = min(max(latency / limits.latency, size / limits.storage) for latency, size in tried)
    factor = max(found.latency / limits.latency, found.storage / limits.storage)
    assert factor == pytest.approx(least, rel=2 * GAP)


def test_what_a_family_is_known_to_lose_decides_between_families() -> None:
    """Pruning looks dear until it is known that training gets most of it back."""
    given_menu = menu(narrowed("layers.0", "layers.1", 16, 0.2), quantized=0.05)
    limit = Limits(latency=0.6 * plan(given_menu, Limits()).latency)  # type: ignore[union-attr]
    before = plan(given_menu, limit)
    after = plan(given_menu, limit, lambda form: 0.01 if form.startswith("prune") else 1.0)
    assert before is not None
    assert after is not None
    assert pruned(before) < pruned(after)


def pruned(found: Plan) -> float:
    return sum(loss for form, loss in found.losses.items() if form.startswith("prune"))


def test_what_a_form_is_known_to_lose_decides_within_a_method() -> None:
    low = factorized("layers.1", 8, 0.1)
    thin = replace(low.offer, choice=Choice("factorize", "separable 8"))
    given_menu = menu(low, Weighed(thin, 0.09))
    precisions = {path: {Precision.FP32: 0.0} for path in given_menu.layers}
    given_menu = replace(given_menu, precisions=precisions)
    limit = Limits(latency=0.9 * plan(given_menu, Limits()).latency)  # type: ignore[union-attr]

    def chosen(worse: str) -> list[str]:
        found = plan(given_menu, limit, lambda form: 2.0 if worse in form else 1.0)
        assert found is not None
        return [choice.option for _, choice in found.reshaped]

    assert chosen("nothing") == ["separable 8"]
    assert chosen("separable") == ["rank 8"]


def test_coupled_channels_narrow_both_their_layers() -> None:
    settled = settle(menu(), [narrowed("layers.0", "layers.1", 16, 0.1).offer])
    assert [shapes[0].outputs for shapes in settled.layers.values()] == [16, CHANNELS, CHANNELS]
    assert [shapes[0].inputs for shapes in settled.layers.values()] == [CHANNELS, 16, CHANNELS]


def test_a_factorized_layer_is_narrowed_at_its_ends() -> None:
    offers = [factorized("layers.1", 8, 0.1), narrowed("layers.0", "layers.1", 16, 0.1)]
    settled = settle(menu(), [weighed.offer for weighed in offers])
    assert settled.layers["layers.1"] == (linear(16, 8), linear(8, CHANNELS))


def test_a_separable_layer_has_a_kernel_for_each_channel_that_it_reads() -> None:
    """Where fewer channels come in, its depthwise part has fewer, and mixes fewer."""
    places = ((8, 8), (3, 3), (1, 1), (1, 1), (1, 1))
    layer = LayerShape(LayerKind.CONVOLUTION, CHANNELS, CHANNELS, *places)
    offer = Offer(
        Part("layers.1", PartKind.LAYER),
        Choice("factorize", "separable"),
        replaced={"layers.1": Separable().shapes(layer)},
    )
    settled = settle(menu(), [offer, narrowed("layers.0", "layers.1", 16, 0.1).offer])
    kernels, mixing = settled.layers["layers.1"]
    assert (kernels.inputs, kernels.outputs, kernels.groups) == (16, 16, 16)
    assert (mixing.inputs, mixing.outputs) == (16, CHANNELS)


def test_a_float_layer_between_integer_ones_pays_for_both_its_borders() -> None:
    """Two layers must be integers; the first and the last lose least, but convert twice."""
    cheap = {Precision.FP32: 0.0, Precision.INT8_STATIC: 0.010}
    dear = {Precision.FP32: 0.0, Precision.INT8_STATIC: 0.015}
    losses = {"layers.0": cheap, "layers.1": dear, "layers.2": cheap}
    free = Menu({path: (linear(),) for path in losses}, (), losses, seconds)
    limit = Limits(latency=11.2e-6)
    assert _floats(plan(free, limit)) == ["layers.1"]
    converting = replace(free, conversion=Seconds(1e-8))
    assert _floats(plan(converting, limit)) in (["layers.0"], ["layers.2"])


def _floats(found: Plan | None) -> list[str]:
    assert found is not None
    return [path for path, precision in found.precisions.items() if precision is Precision.FP32]


def test_what_was_planned_is_appraised_alike() -> None:
    some = menu(narrowed("layers.0", "layers.1", 16, 0.5), factorized("layers.2", 8, 0.3))
    found = fastest(some)
    appraised = appraise(some, offers_of(some, found.reshaped), found.precisions)
    assert appraised.latency == pytest.approx(found.latency)
    assert appraised.storage == found.storage
    assert appraised.losses == pytest.approx(found.losses)


def test_a_precision_that_is_not_on_the_menu_is_not_appraised() -> None:
    with pytest.raises(LookupError):
        appraise(menu(), [], {"layers.0": Precision.INT4_WEIGHTS})
