"""Plans ask every layer for what it can have, say why not, and spare the most sensitive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebuild import catalog
from edgebuild.inputs.target_file import load_target, target_names
from edgebuild.search.uniform import refusal, uniform, uniform_recipes, worth_trying
from edgebuild.vocabulary.errors import InputError
from edgebuild.vocabulary.precision import LayerKind, Precision
from edgebuild.vocabulary.program import Site
from edgebuild.vocabulary.recipe import Recipe
from edgebuild.vocabulary.target import Budget, RuntimeFacts, Target

FORMATS = catalog.names("exporters")
EVERYTHING = tuple(Precision)
ONE_OF_EACH = tuple(Site(str(kind), kind) for kind in LayerKind)
TARGETS = [load_target(name) for name in target_names()]
SITES = st.lists(st.sampled_from(LayerKind), min_size=1, max_size=60).map(
    lambda kinds: tuple(Site(f"layers.{number}", kind) for number, kind in enumerate(kinds))
)


def planned(
    sites: Sequence[Site],
    target: Target,
    formats: Sequence[str] = FORMATS,
    precisions: Sequence[Precision] = EVERYTHING,
    sensitivity: Mapping[Site, float] | None = None,
) -> list[Recipe]:
    case: Any = SimpleNamespace(program=SimpleNamespace(sites=tuple(sites)), target=target)
    losses = {
        (site, precision): loss
        for site, loss in (sensitivity or {}).items()
        for precision in Precision
    }
    return uniform_recipes(case, losses, formats, precisions)


def runtime_of(target: Target, name: str) -> RuntimeFacts:
    return next(runtime for runtime in target.runtimes if runtime.name == name)


def layers(count: int, kind: LayerKind = LayerKind.CONVOLUTION) -> list[Site]:
    return [Site(f"layers.{number}", kind) for number in range(count)]


# ---- what a layer can have


def test_a_format_without_a_kernel_refuses_with_its_reason() -> None:
    target = load_target("phone-budget")
    site = Site("conv", LayerKind.CONVOLUTION)
    runtime = runtime_of(target, "litert")
    reason = refusal(site, Precision.INT4_WEIGHTS, catalog.exporter("tflite"), runtime)
    assert reason == "XNNPACK has no four-bit convolution"


def test_a_target_without_a_fast_kernel_refuses_with_its_reason() -> None:
    runtime = runtime_of(load_target("robot-raspberry-pi-4"), "litert")
    site = Site("fc", LayerKind.LINEAR)
    reason = refusal(site, Precision.INT8_DYNAMIC, catalog.exporter("tflite"), runtime)
    assert reason == "the target has no fast int8-dynamic kernel for linear in litert"


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("kind", LayerKind)
def test_float_is_never_refused(format_: str, kind: LayerKind) -> None:
    bare = RuntimeFacts("any", "any", 1, TARGETS[0].runtimes[0].activations, 1, {})
    assert refusal(Site("any", kind), Precision.FP32, catalog.exporter(format_), bare) == ""


def test_four_bits_fall_back_to_other_integers_and_say_why() -> None:
    conv, linear = Site("conv", LayerKind.CONVOLUTION), Site("fc", LayerKind.LINEAR)
    runtime = runtime_of(load_target("phone-budget"), "litert")
    recipe = uniform(Precision.INT4_WEIGHTS, (conv, linear), catalog.exporter("tflite"), runtime)
    assert recipe.precisions == {conv: Precision.INT8_STATIC, linear: Precision.INT4_WEIGHTS}
    assert recipe.declined == ((conv, "XNNPACK has no four-bit convolution: int8-static"),)


def test_eight_bits_fall_back_to_float_only() -> None:
    for target in TARGETS:
        for recipe in planned(ONE_OF_EACH, target):
            for site, reason in recipe.declined:
                got = recipe.precisions[site]
                assert reason
                assert not got.is_integer or recipe.name == Precision.INT4_WEIGHTS


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_no_layer_gets_what_its_format_or_target_refuses(target: Target) -> None:
    for recipe in planned(ONE_OF_EACH, target):
        exporter = catalog.exporter(recipe.format)
        runtime = runtime_of(target, exporter.runtime)
        for site, precision in recipe.precisions.items():
            assert refusal(site, precision, exporter, runtime) == ""


def test_dynamic_layers_never_reach_the_old_runtime_that_computes_them_wrong() -> None:
    for recipe in planned(ONE_OF_EACH, load_target("robot-raspberry-pi-4")):
        if recipe.format == "tflite":
            assert Precision.INT8_DYNAMIC not in recipe.precisions.values()


@pytest.mark.parametrize("line", ["storage", "download"])
def test_mere_storage_is_tried_where_floats_would_not_fit_alone(line: str) -> None:
    million: Any = SimpleNamespace(operators=[SimpleNamespace(weights=10**6)])
    stored = {precision for precision in Precision if precision.is_storage_only}
    for wish in ({"latency_p99": "1 ms", "memory": "1 MB"}, {line: "5 MB"}):
        assert stored.isdisjoint(worth_trying(Budget.parse(**wish), million))
    assert stored.issubset(worth_trying(Budget.parse(**{line: "3 MB"}), million))


@pytest.mark.parametrize("precision", [Precision.FP8_WEIGHTS, Precision.BINARY_WEIGHTS])
def test_who_asks_for_mere_storage_gets_it_where_the_format_can(precision: Precision) -> None:
    (recipe,) = planned(layers(3), load_target("host"), precisions=[precision])
    assert recipe.format == "onnx"
    assert set(recipe.precisions.values()) == {precision}


# ---- which recipes


@given(sites=SITES, name=st.sampled_from(target_names()))
def test_every_recipe_chooses_once_for_every_site_and_none_comes_twice(
    sites: tuple[Site, ...], name: str
) -> None:
    recipes = planned(sites, load_target(name))
    assert len({recipe.digest for recipe in recipes}) == len(recipes)
    assert len({(recipe.format, recipe.name) for recipe in recipes}) == len(recipes)
    for recipe in recipes:
        assert tuple(site for site, _ in recipe.chosen) == sites


def test_a_precision_that_no_layer_can_have_is_not_tried() -> None:
    names = [recipe.name for recipe in planned(layers(3, LayerKind.EMBEDDING), TARGETS[0])]
    assert not [name for name in names if name.startswith("int")]


def test_a_precision_that_comes_to_the_same_layers_is_tried_once() -> None:
    target = load_target("robot-raspberry-pi-4")
    recipes = planned(layers(3), target, ["tflite"], [Precision.INT8_STATIC] * 2)
    assert [recipe.name for recipe in recipes] == ["int8-static"]


def test_formats_and_precisions_restrict_what_is_tried() -> None:
    host = load_target("host")
    recipes = planned(ONE_OF_EACH, host, ["onnx"], [Precision.FP16, Precision.FP32])
    assert {(recipe.format, recipe.name) for recipe in recipes} == {
        ("onnx", "fp16"),
        ("onnx", "fp32"),
    }
    assert planned(ONE_OF_EACH, host, []) == planned(ONE_OF_EACH, host, FORMATS, []) == []


def test_only_formats_of_the_targets_runtimes_are_tried() -> None:
    host = load_target("host")
    litert = replace(host, runtimes=(runtime_of(host, "litert"),))
    assert {recipe.format for recipe in planned(ONE_OF_EACH, litert)} == {"tflite"}


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(InputError, match="no exporter is called 'tflit'. Did you mean 'tflite'"):
        planned(ONE_OF_EACH, load_target("host"), ["tflit"])


# ---- which layers are spared


@given(
    losses=st.lists(st.floats(0, 1), min_size=2, max_size=60, unique=True),
    precision=st.sampled_from([Precision.INT8_STATIC, Precision.INT8_DYNAMIC]),
)
def test_a_mix_keeps_exactly_the_most_sensitive_layers_in_float(
    losses: list[float], precision: Precision
) -> None:
    kind = LayerKind.LINEAR
    sites = layers(len(losses), kind)
    sensitivity = dict(zip(sites, losses, strict=True))
    asked = [precision, Precision.FP32]
    whole, *mixes, _ = planned(sites, load_target("host"), ["tflite"], asked, sensitivity)
    assert set(whole.precisions.values()) == {precision}
    assert mixes
    for mix in mixes:
        spared = [site for site, got in mix.precisions.items() if got is Precision.FP32]
        ranked = sorted(sites, key=lambda site: sensitivity[site], reverse=True)
        assert set(spared) == set(ranked[: len(spared)])
        assert 0 < len(spared) < len(sites)
        assert mix.name == f"{precision}, {len(spared)} in float"
        assert {site for site, _ in mix.declined} == set(spared)
        assert all("most sensitive" in reason for _, reason in mix.declined)


@pytest.mark.parametrize("precision", [Precision.INT8_STATIC, Precision.INT8_DYNAMIC])
def test_no_layer_is_spared_where_float_was_not_asked_for(precision: Precision) -> None:
    sites = [*layers(50, LayerKind.LINEAR), Site("words", LayerKind.EMBEDDING)]
    for asked in ([precision], [precision, Precision.FP16]):
        whole, *others = planned(sites, load_target("host"), ["tflite"], asked)
        assert {other.name for other in others} <= {"fp16"}
        # What the format has no kernel for is told.
        assert [(site.path, bool(reason)) for site, reason in whole.declined] == [("words", True)]


def test_larger_networks_are_mixed_in_more_shares() -> None:
    target = load_target("robot-raspberry-pi-4")
    counts = {}
    for size in (1, 5, 50):
        asked = [Precision.INT8_STATIC, Precision.FP32]
        recipes = planned(layers(size), target, ["tflite"], asked)
        counts[size] = [recipe.summary for recipe in recipes[1:-1]]
    assert counts == {
        1: [],
        5: ["4 int8-static, 1 fp32"],
        50: [f"{50 - spared} int8-static, {spared} fp32" for spared in (1, 3, 6)],
    }


def test_a_recipe_that_is_mostly_something_else_is_not_mixed() -> None:
    sites = [*layers(3), Site("fc", LayerKind.LINEAR)]
    asked = [Precision.INT8_DYNAMIC, Precision.FP32]
    recipes = planned(sites, load_target("host"), ["onnx"], asked)
    assert [recipe.name for recipe in recipes] == ["int8-dynamic", "fp32"]


def test_layers_that_are_float_anyway_are_not_counted_as_spared() -> None:
    sites = [*layers(4), Site("words", LayerKind.EMBEDDING)]
    sensitivity = {sites[-1]: 9.0, sites[2]: 1.0}
    asked = [Precision.INT8_STATIC, Precision.FP32]
    _, mix, _ = planned(sites, load_target("host"), ["tflite"], asked, sensitivity)
    assert mix.precisions[sites[2]] is Precision.FP32
    assert mix.name == "int8-static, 1 in float"
