"""A layer's shape says all of it that its speed depends on, and can be made a layer again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from conftest import Workshop
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgebuild.capture import capture
from edgebuild.search.layers import (
    input_of,
    layer_runs,
    layer_shapes,
    module_of,
    resized,
)
from edgebuild.vocabulary.offer import LayerShape, macs, weights
from edgebuild.vocabulary.precision import LayerKind

WIDTHS = st.integers(2, 6)
SIZES = st.integers(5, 9)


@st.composite
def convolutions(draw: st.DrawFn) -> LayerShape:
    kind = draw(st.sampled_from([LayerKind.CONVOLUTION, LayerKind.DEPTHWISE, LayerKind.TRANSPOSED]))
    groups = draw(st.integers(1, 3)) if kind is LayerKind.CONVOLUTION else 1
    # At least two a group: with one it would be a depthwise layer.
    inputs, outputs = groups * draw(WIDTHS), groups * draw(WIDTHS)
    if kind is LayerKind.DEPTHWISE:
        groups, outputs = inputs, inputs * draw(st.integers(1, 2))
    axes = draw(st.integers(1, 2))

    def each(values: st.SearchStrategy[int]) -> tuple[int, ...]:
        return tuple(draw(values) for _ in range(axes))

    return LayerShape(
        kind,
        inputs,
        outputs,
        extent=each(SIZES),
        kernel=each(st.integers(1, 3)),
        stride=each(st.integers(1, 2)),
        padding=each(st.just(0) if kind is LayerKind.TRANSPOSED else st.integers(0, 1)),
        dilation=each(st.integers(1, 2)),
        groups=groups,
    )


TABLES = st.builds(
    LayerShape, st.just(LayerKind.EMBEDDING), WIDTHS, WIDTHS, st.tuples(st.integers(1, 5))
)
LINEAR = st.builds(
    LayerShape,
    st.just(LayerKind.LINEAR),
    WIDTHS,
    WIDTHS,
    st.one_of(st.just(()), st.tuples(st.integers(1, 5))),
)
SHAPES = st.one_of(convolutions(), TABLES, LINEAR)


class _Calls(nn.Module):
    """A network whose forward is a function of its layer and its input."""

    def __init__(self, layer: nn.Module, function: Callable[[nn.Module, Tensor], object]) -> None:
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, value: Tensor) -> object:
        return self.function(self.layer, value)


def runs_of(
    layer: nn.Module,
    value: Tensor,
    function: Callable[[nn.Module, Tensor], object] = lambda layer, value: layer(value),
) -> tuple[LayerShape, ...]:
    program = capture(_Calls(layer, function).eval(), (value,))
    return next(iter(layer_runs(program).values()), ())


# ---- reading


@settings(max_examples=25)
@given(shape=SHAPES)
def test_the_shape_of_a_layer_made_of_a_shape_is_that_shape(shape: LayerShape) -> None:
    assert runs_of(module_of(shape), input_of(shape)) == (shape,)


@pytest.mark.parametrize("name", ["bert", "convnext", "gru", "two-inputs", "u-net", "vit"])
def test_every_layer_but_a_recurrence_has_a_shape_that_counts_its_work(
    name: str, workshop: Workshop
) -> None:
    program = workshop.subject(name).program
    counted: Counter[str] = Counter()
    for operator in program.operators:
        if operator.site is not None and operator.site.kind is not LayerKind.RECURRENT:
            counted[operator.site.path] += operator.macs
    found = layer_runs(program)
    assert {path: sum(map(macs, shapes)) for path, shapes in found.items()} == counted
    assert layer_shapes(program) == {path: shapes[0] for path, shapes in found.items()}


@pytest.mark.parametrize(
    "multiply",
    [
        lambda weight, value: value @ weight,
        lambda weight, value: torch.mm(value[0], weight),
        lambda weight, value: torch.addmm(value[0, :, :1], value[0], weight),
        lambda weight, value: nn.functional.linear(value, weight.T.contiguous()),
    ],
    ids=["matmul", "mm", "addmm", "linear"],
)
def test_a_product_with_a_weight_is_a_linear_layer_however_it_is_written(
    multiply: Callable[[Tensor, Tensor], Tensor],
) -> None:
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.randn(4, 5))
    found = runs_of(layer, torch.zeros(1, 3, 4), lambda owner, value: multiply(owner.weight, value))  # type: ignore[arg-type]
    assert found == (LayerShape(LayerKind.LINEAR, 4, 5, (3,)),)


def test_tokens_of_all_axes_are_counted_together() -> None:
    assert runs_of(nn.Linear(4, 5), torch.zeros(1, 2, 3, 4))[0].extent == (6,)


def test_a_layer_that_runs_twice_has_two_shapes() -> None:
    layer = nn.Conv2d(2, 2, 3, padding=1)
    found = runs_of(
        layer, torch.zeros(1, 2, 8, 8), lambda layer, value: layer(layer(value)[..., :4])
    )
    assert [shape.extent for shape in found] == [(8, 8), (8, 4)]


def test_a_batch_of_three_counts_as_three_runs() -> None:
    assert len(runs_of(nn.Conv2d(2, 2, 3), torch.zeros(3, 2, 8, 8))) == 3


def test_padding_in_words_is_read_as_numbers() -> None:
    value = torch.zeros(1, 2, 8, 8)
    same = nn.Conv2d(2, 3, (3, 5), padding="same", dilation=2)
    assert runs_of(same, value)[0].padding == (2, 4)
    assert runs_of(nn.Conv2d(2, 3, 3, padding="valid"), value)[0].padding == (0, 0)


def test_a_recurrence_has_no_shape() -> None:
    assert runs_of(nn.GRU(3, 4, batch_first=True), torch.zeros(1, 5, 3)) == ()


# ---- counting and resizing


@given(shape=SHAPES)
def test_weights_are_counted_as_the_layer_stores_them(shape: LayerShape) -> None:
    assert weights(shape) == module_of(shape).weight.numel()  # type: ignore[operator, union-attr]


@given(shape=SHAPES, factor=st.integers(1, 4))
def test_a_wider_layer_keeps_all_but_its_widths(shape: LayerShape, factor: int) -> None:
    wider = resized(shape, shape.inputs * factor, shape.outputs * factor)
    assert (wider.inputs, wider.outputs) == (shape.inputs * factor, shape.outputs * factor)
    assert resized(wider, shape.inputs, shape.outputs) == shape
    square = 1 if shape.kind is LayerKind.DEPTHWISE else 2
    assert weights(wider) == weights(shape) * factor**square


def test_a_depthwise_layer_keeps_one_group_a_channel() -> None:
    shape = runs_of(nn.Conv2d(8, 8, 3, groups=8), torch.zeros(1, 8, 6, 6))[0]
    assert resized(shape, 5, 5).groups == 5
    with pytest.raises(ValueError, match="5 groups divide no 5 inputs and 6 outputs"):
        resized(shape, 5, 6)


def test_widths_that_groups_do_not_divide_are_refused() -> None:
    shape = runs_of(nn.Conv2d(8, 8, 3, groups=4), torch.zeros(1, 8, 6, 6))[0]
    assert resized(shape, 4, 8).groups == 4
    with pytest.raises(ValueError, match="4 groups divide no 6 inputs"):
        resized(shape, 6, 8)
