"""A recipe's digest names what is done, whatever it is called."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from edgebuild.vocabulary.offer import Choice
from edgebuild.vocabulary.precision import LayerKind, Precision
from edgebuild.vocabulary.program import Site
from edgebuild.vocabulary.recipe import Recipe

FORM = TypeAdapter(Recipe)
SITES = st.builds(Site, st.text("abc.01", min_size=1, max_size=8), st.sampled_from(LayerKind))
CHOICES = st.builds(Choice, st.just("quantize"), st.sampled_from([str(p) for p in Precision]))
CHOSEN = st.lists(
    st.tuples(SITES, CHOICES), min_size=1, max_size=6, unique_by=lambda step: step[0].path
).map(tuple)
DECLINED = st.lists(st.tuples(SITES, st.text(max_size=10)), max_size=3).map(tuple)
RECIPES = st.builds(Recipe, st.text(max_size=8), st.sampled_from(["onnx", "tflite"]), CHOSEN)


@given(recipe=RECIPES, name=st.text(), declined=DECLINED, data=st.data())
def test_neither_name_nor_order_nor_reasons_change_the_digest(
    recipe: Recipe, name: str, declined: tuple[tuple[Site, str], ...], data: st.DataObject
) -> None:
    shuffled = tuple(data.draw(st.permutations(recipe.chosen)))
    assert Recipe(name, recipe.format, shuffled, declined).digest == recipe.digest


@given(recipe=RECIPES, choice=CHOICES, data=st.data())
def test_another_choice_at_one_site_is_another_digest(
    recipe: Recipe, choice: Choice, data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, len(recipe.chosen) - 1))
    site, before = recipe.chosen[position]
    assume(choice != before)
    steps = (*recipe.chosen[:position], (site, choice), *recipe.chosen[position + 1 :])
    assert Recipe(recipe.name, recipe.format, steps).digest != recipe.digest


@given(recipe=RECIPES)
def test_another_format_or_one_step_less_is_another_digest(recipe: Recipe) -> None:
    other = Recipe(recipe.name, "another", recipe.chosen)
    shorter = Recipe(recipe.name, recipe.format, recipe.chosen[1:])
    assert len({recipe.digest, other.digest, shorter.digest}) == 3


@given(recipe=RECIPES, declined=DECLINED)
def test_a_recipe_survives_json(recipe: Recipe, declined: tuple[tuple[Site, str], ...]) -> None:
    whole = Recipe(recipe.name, recipe.format, recipe.chosen, declined)
    again = FORM.validate_json(FORM.dump_json(whole))
    assert again == whole
    assert again.digest == whole.digest
    assert again.precisions == whole.precisions


def test_a_declined_site_is_fp32_unless_something_else_was_chosen() -> None:
    left, right = (Site(path, LayerKind.LINEAR) for path in ("left", "right"))
    chosen = ((right, Choice("quantize", Precision.FP16)),)
    recipe = Recipe("a test's", "onnx", chosen, ((left, "why not"), (right, "why not")))
    assert recipe.precisions == {left: Precision.FP32, right: Precision.FP16}


def test_the_summary_counts_layers_by_precision() -> None:
    sites = [Site(str(number), LayerKind.LINEAR) for number in range(3)]
    options = (Precision.INT8_STATIC, Precision.INT8_STATIC, Precision.FP32)
    chosen = tuple((site, Choice("quantize", o)) for site, o in zip(sites, options, strict=True))
    assert Recipe("a test's", "onnx", chosen).summary == "2 int8-static, 1 fp32"
