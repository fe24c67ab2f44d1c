"""Costs are measured once, many in one network, and what lies between them is interpolated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import Workshop
from hypothesis import given
from hypothesis import strategies as st
from listening import Listening
from torch import Tensor, nn
from zoo import Specimen

from edgebuild import catalog
from edgebuild.cache import Cache
from edgebuild.capture import capture
from edgebuild.search import costs as costs_module
from edgebuild.search import probe_network
from edgebuild.search.costs import (
    LayerCosts,
    Place,
    family_grid,
    glue_of,
    measure_costs,
    predict,
    profile_overhead,
)
from edgebuild.search.layers import input_of, layer_shapes, resized
from edgebuild.search.probe_network import FLOATING, UNNAMED, ProbeNetwork, Timing, time_layers
from edgebuild.vocabulary.artifact import Arithmetic, KernelRun
from edgebuild.vocabulary.offer import LayerShape
from edgebuild.vocabulary.precision import LayerKind, Precision
from edgebuild.vocabulary.program import Program
from edgebuild.vocabulary.silence import Silence
from edgebuild.vocabulary.target import Activations, RuntimeFacts
from edgebuild.vocabulary.units import Seconds

FP32, INT8 = Precision.FP32, Precision.INT8_STATIC
RUNTIMES = {
    "onnx": RuntimeFacts("onnxruntime", "any", 1, Activations.UINT8, 16, {}),
    "tflite": RuntimeFacts("litert", "any", 1, Activations.INT8, 16, {}),
}


def convolution(inputs: int, outputs: int, size: int = 8, kernel: int = 3) -> LayerShape:
    both = (kernel // 2, kernel // 2)
    return LayerShape(
        LayerKind.CONVOLUTION,
        *(inputs, outputs, (size, size), (kernel, kernel), (1, 1), both, (1, 1)),
    )


def depthwise(channels: int, size: int = 8) -> LayerShape:
    return LayerShape(
        LayerKind.DEPTHWISE,
        *(channels, channels, (size, size), (3, 3), (1, 1), (1, 1), (1, 1), channels),
    )


def linear(inputs: int, outputs: int, tokens: int = 4) -> LayerShape:
    return LayerShape(LayerKind.LINEAR, inputs, outputs, (tokens,))


TABLE = LayerShape(LayerKind.EMBEDDING, 10, 4, (3,))
# Of each kind a small one and one with at least 64 times the work.
SMALL = [convolution(8, 8), depthwise(16), linear(16, 16)]
LARGE = [convolution(64, 64, 16), depthwise(512, 16), linear(512, 512, 16)]


def timed_as(seconds: float) -> Timing:
    return Timing((Seconds(seconds),))


# ---- measuring


@pytest.mark.parametrize("format", ["onnx", "tflite"])
@pytest.mark.parametrize("precision", [FP32, INT8])
@pytest.mark.usefixtures("workshop")
def test_layers_in_one_network_take_longer_the_more_they_do(
    format: str, precision: Precision
) -> None:
    timings = time_layers([*SMALL, *LARGE], precision, format, RUNTIMES[format])
    seconds = [timing.seconds for timing in timings]
    assert all(len(timing.rounds) == probe_network.ROUNDS for timing in timings)
    assert all(large > small for small, large in zip(seconds[:3], seconds[3:], strict=True))


KERNELS = {
    "onnx": {"Conv", "Gemm", "MatMul"},
    "tflite": {"Convolution", "Fully Connected"},
}


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_every_layer_is_timed_by_its_own_kernel(format: str, workshop: Workshop) -> None:
    """Nothing but order tells LiteRT's kernels apart, so the layers alternate here."""
    shapes = [LARGE[0], depthwise(16), linear(16, 32), depthwise(8), convolution(8, 8), LARGE[2]]
    name = f"alternating-{format}"
    network = Specimen(name, ProbeNetwork(shapes).eval(), tuple(map(input_of, shapes)))
    workshop.subjects[name] = workshop.study(network)
    runs = workshop.kernels_of(name, workshop.artifact(name, format, FP32))
    kernels = {run.sites[0]: run.kernel for run in runs if run.sites}
    assert set(kernels) == {f"layers.{number}" for number in range(len(shapes))}
    is_linear = ["Conv" not in kernels[f"layers.{number}"] for number in range(len(shapes))]
    assert is_linear == [shape.kind is LayerKind.LINEAR for shape in shapes]
    if format == "tflite":
        filtered = ["DWConv" in kernels[f"layers.{number}"] for number in range(len(shapes))]
        assert filtered == [shape.kind is LayerKind.DEPTHWISE for shape in shapes]


def test_the_clocks_own_time_is_not_the_layers() -> None:
    timing = Timing((Seconds(9e-6), Seconds(5e-6), Seconds(6e-6)), idle=Seconds(2e-6))
    assert timing.seconds == pytest.approx(3e-6)
    assert timing.spread == pytest.approx(0.2)
    assert Timing((Seconds(1e-6),), idle=Seconds(2e-6)).seconds == 0


def test_a_layer_that_cannot_be_made_does_not_spoil_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def timed(shapes: Sequence[LayerShape], *_: object) -> list[Timing]:
        if LARGE[1] in shapes:
            raise RuntimeError("no such kernel")
        return [timed_as(shape.inputs) for shape in shapes]

    monkeypatch.setattr(probe_network, "_timed", timed)
    found = time_layers(LARGE, FP32, "onnx", RUNTIMES["onnx"])
    assert [timing.rounds for timing in found] == [(64.0,), (), (512.0,)]
    assert found[1].reason == "RuntimeError: no such kernel"


def run_of(
    *sites: str, seconds: float = 1.0, arithmetic: Arithmetic = Arithmetic.FLOAT
) -> KernelRun:
    return KernelRun("kernel", sites, arithmetic, Seconds(seconds))


def test_a_kernel_of_several_layers_tells_of_none() -> None:
    runs = [run_of("a", "b"), run_of("c", seconds=2.0), run_of("c", seconds=3.0)]
    assert probe_network._seconds(runs, "a", FP32) == UNNAMED
    assert probe_network._seconds(runs, "c", FP32) == 5.0


def test_a_float_kernel_is_no_cost_of_an_integer_layer() -> None:
    runs = [run_of("a", arithmetic=Arithmetic.INTEGER), run_of("b")]
    assert probe_network._seconds(runs, "a", INT8) == 1.0
    assert probe_network._seconds(runs, "b", INT8) == FLOATING


# ---- once


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[LayerShape]]:
    """Which layers are timed together; each takes as long as it has inputs."""
    asked: list[list[LayerShape]] = []

    def time(shapes: Sequence[LayerShape], *_: object) -> list[Timing]:
        asked.append(list(shapes))
        return [
            Timing((), reason=UNNAMED)
            if shape.kind is LayerKind.EMBEDDING
            else timed_as(shape.inputs)
            for shape in shapes
        ]

    monkeypatch.setattr(costs_module, "time_layers", time)
    return asked


def test_a_layer_is_measured_once(batches: list[list[LayerShape]], tmp_path: Path) -> None:
    def measure(shapes: Sequence[LayerShape]) -> dict[Place, Seconds]:
        places = [(shape, FP32) for shape in shapes]
        return measure_costs(places, "onnx", RUNTIMES["onnx"], Cache(tmp_path), Silence())

    first = measure(SMALL)
    assert measure(SMALL) == first
    assert measure([*SMALL, LARGE[0], LARGE[0]]) == {**first, (LARGE[0], FP32): Seconds(64.0)}
    assert batches == [SMALL, [LARGE[0]]]


def test_precisions_are_measured_apart(batches: list[list[LayerShape]], tmp_path: Path) -> None:
    places = [(shape, precision) for shape in SMALL for precision in (FP32, INT8)]
    found = measure_costs(places, "onnx", RUNTIMES["onnx"], Cache(tmp_path), Silence())
    assert set(found) == set(places)
    assert batches == [SMALL, SMALL]


def test_the_same_layers_stand_together_in_each_of_their_precisions(
    batches: list[list[LayerShape]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the float network all precisions start from is converted once."""
    monkeypatch.setattr(costs_module, "LAYERS_AT_ONCE", 2)
    shapes = [linear(4, width) for width in range(1, 6)]
    places = [
        (shape, precision)
        for number, shape in enumerate(shapes)
        for precision in ((FP32, INT8) if number % 2 else (FP32, INT8, Precision.INT8_DYNAMIC))
    ]
    found = measure_costs(places, "tflite", RUNTIMES["tflite"], Cache(tmp_path), Silence())
    assert set(found) == set(places)
    ternary, pairs = shapes[::2], shapes[1::2]
    assert batches == [ternary[:2]] * 3 + [ternary[2:]] * 3 + [pairs] * 2


def test_what_is_measured_for_other_activations_or_formats_is_measured_anew(
    batches: list[list[LayerShape]], tmp_path: Path
) -> None:
    signed = RuntimeFacts("onnxruntime", "any", 1, Activations.INT8, 16, {})
    for format, runtime in [*RUNTIMES.items(), ("onnx", signed)]:
        measure_costs([(SMALL[0], INT8)], format, runtime, Cache(tmp_path), Silence())
    assert len(batches) == 3


def test_a_network_holds_no_more_layers_than_converters_like(
    batches: list[list[LayerShape]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs_module, "LAYERS_AT_ONCE", 4)
    places = [(linear(4, width), FP32) for width in range(1, 11)]
    found = measure_costs(places, "onnx", RUNTIMES["onnx"], Cache(tmp_path), Silence())
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert list(found) == places


def test_a_network_holds_no_more_numbers_than_memory_does(
    batches: list[list[LayerShape]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs_module, "NUMBERS_AT_ONCE", 10_000)
    wide, narrow = [linear(100, width, tokens=1) for width in (200, 90)], linear(4, 4)
    places = [(shape, FP32) for shape in (*wide, narrow)]
    measure_costs(places, "onnx", RUNTIMES["onnx"], Cache(tmp_path), Silence())
    assert batches == [[wide[0]], [wide[1], narrow]]


def test_what_the_format_refuses_or_the_profile_does_not_name_has_no_cost(
    batches: list[list[LayerShape]], tmp_path: Path
) -> None:
    notes = Listening()
    places = [(TABLE, FP32), (TABLE, INT8), (SMALL[2], INT8)]
    found = measure_costs(places, "tflite", RUNTIMES["tflite"], Cache(tmp_path), notes)
    assert set(found) == {(SMALL[2], INT8)}
    assert notes.said == [f"tflite fp32 embedding 10 to 4: no time, {UNNAMED}"]


def test_a_failure_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [Timing((), reason="DeviceError: out of memory"), timed_as(1.0)]
    monkeypatch.setattr(costs_module, "time_layers", lambda *_: [answers.pop(0)])

    def measure() -> dict[Place, Seconds]:
        return measure_costs(
            [(SMALL[0], FP32)], "onnx", RUNTIMES["onnx"], Cache(tmp_path), Silence()
        )

    assert measure() == {}
    assert measure() == {(SMALL[0], FP32): 1.0}


def test_the_profiles_own_time_is_what_an_idle_layer_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = Timing((Seconds(4e-6),), idle=Seconds(2e-6))
    monkeypatch.setattr(costs_module, "time_layers", lambda *_: [idle])
    found = profile_overhead("onnx", RUNTIMES["onnx"], Cache(tmp_path), Silence())
    assert found == 2e-6


# ---- widths between

WIDTHS = st.integers(1, 512)
COEFFICIENTS = st.tuples(
    st.floats(2e-6, 1e-3), st.floats(1e-11, 1e-8), st.floats(1e-9, 1e-7), st.floats(1e-9, 1e-7)
)


def law(shape: LayerShape, coefficients: tuple[float, float, float, float]) -> Seconds:
    fixed, product, inputs, outputs = coefficients
    width = shape.inputs * shape.outputs
    return Seconds(fixed + product * width + inputs * shape.inputs + outputs * shape.outputs)


def costs_by(coefficients: tuple[float, float, float, float]) -> LayerCosts:
    grid = family_grid(convolution(512, 512), 16)
    return LayerCosts({(shape, FP32): law(shape, coefficients) for shape in grid})


@given(coefficients=COEFFICIENTS, inputs=WIDTHS, outputs=WIDTHS)
def test_a_law_of_widths_is_found_from_a_few_of_them(
    coefficients: tuple[float, float, float, float], inputs: int, outputs: int
) -> None:
    shape = resized(convolution(512, 512), inputs, outputs)
    found = costs_by(coefficients).seconds(shape, FP32)
    assert found == pytest.approx(law(shape, coefficients), rel=1e-3)


@given(seconds=st.lists(st.floats(0, 1e-2), min_size=5, max_size=5), inputs=WIDTHS, outputs=WIDTHS)
def test_no_time_is_negative_and_what_was_measured_stands(
    seconds: list[float], inputs: int, outputs: int
) -> None:
    grid = family_grid(convolution(256, 256), 16)
    measured = {(shape, FP32): Seconds(s) for shape, s in zip(grid, seconds, strict=True)}
    costs = LayerCosts(measured)
    assert all(costs.seconds(*place) == s for place, s in measured.items())
    assert costs.seconds(convolution(inputs, outputs), FP32) >= 0


@given(inputs=WIDTHS, outputs=WIDTHS, more=st.integers(0, 64))
def test_a_wider_layer_is_never_predicted_to_be_faster(
    inputs: int, outputs: int, more: int
) -> None:
    times = [5e-5, 2e-5, 1.1e-5, 1.5e-5, 1.2e-5]
    grid = family_grid(convolution(256, 256), 16)
    costs = LayerCosts(
        {(one, FP32): Seconds(s) for one, s in zip(grid[1:], times[1:], strict=True)}
    )
    narrow = costs.seconds(convolution(inputs + 600, outputs), FP32)
    wide = costs.seconds(convolution(inputs + 600 + more, outputs + more), FP32)
    assert wide >= narrow * (1 - 1e-9)


def test_depthwise_layers_follow_their_channels() -> None:
    grid = family_grid(depthwise(64), 16)
    costs = LayerCosts({(shape, FP32): Seconds(1e-5 + 1e-6 * shape.inputs) for shape in grid})
    assert costs.seconds(depthwise(48), FP32) == pytest.approx(5.8e-5, rel=1e-3)


def test_other_layers_and_precisions_are_not_guessed() -> None:
    costs = LayerCosts({(convolution(8, 8), FP32): Seconds(1.0)})
    assert costs.knows(convolution(4, 8), FP32)
    for shape, precision in [
        (convolution(8, 8), INT8),
        (convolution(8, 8, size=9), FP32),
        (linear(8, 8), FP32),
    ]:
        assert not costs.knows(shape, precision)
        with pytest.raises(LookupError, match="no width of LayerShape.* was measured in"):
            costs.seconds(shape, precision)


def test_a_look_up_that_no_profile_names_takes_nothing_of_its_own() -> None:
    assert LayerCosts({}).seconds(TABLE, FP32) == 0
    assert LayerCosts({(TABLE, FP32): Seconds(2.0)}).seconds(TABLE, FP32) == 2


@given(
    inputs=WIDTHS, outputs=WIDTHS, multiple=st.sampled_from([1, 8, 16]), groups=st.integers(1, 3)
)
def test_a_grid_has_the_layer_itself_and_only_widths_worth_having(
    inputs: int, outputs: int, multiple: int, groups: int
) -> None:
    shape = resized(
        LayerShape(LayerKind.CONVOLUTION, 0, 0, (8,), (3,), (1,), (1,), (1,), groups),
        inputs * groups,
        outputs * groups,
    )
    grid = family_grid(shape, multiple)
    assert grid[0] == shape
    assert len(set(grid)) == len(grid) <= 5
    each = math.lcm(multiple, groups)
    for one in grid:
        assert one.inputs == shape.inputs or (one.inputs % each == 0 and one.inputs < shape.inputs)
        assert one.outputs == shape.outputs or one.outputs % each == 0


def test_a_grid_narrows_each_side_alone_and_both_together() -> None:
    pairs = {(one.inputs, one.outputs) for one in family_grid(convolution(64, 128), 16)}
    assert pairs == {(64, 128), (32, 64), (16, 32), (64, 32), (16, 128)}
    assert {one.inputs for one in family_grid(depthwise(64), 16)} == {64, 32, 16}
    assert {one.inputs for one in family_grid(convolution(3, 128), 16)} == {3}
    assert {one.inputs for one in family_grid(TABLE, 1)} == {10}


# ---- glue and whole networks


class _Twice(nn.Module):
    """One layer that runs twice, a recurrence, and a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.twice = nn.Linear(4, 4)
        self.state = nn.GRU(4, 3, batch_first=True)

    def forward(self, words: Tensor) -> Tensor:
        tokens = self.twice(torch.relu(self.twice(self.table(words))))
        return self.state(tokens)[0]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def program() -> Program:
    return capture(_Twice().eval(), (torch.zeros(1, 5, dtype=torch.int64),))


def test_kernels_without_weights_go_with_the_layer_before_them(program: Program) -> None:
    runs = [
        run_of(seconds=1.0),
        run_of("table", seconds=2.0),
        run_of("twice", seconds=4.0),
        run_of(seconds=8.0),
        run_of("twice", seconds=16.0),
        run_of(seconds=32.0),
        run_of("state", seconds=64.0),
    ]
    assert glue_of(runs, program) == {"table": 1.0, "twice": 40.0, "state": 64.0}
    without = glue_of(runs, program, overhead=Seconds(2.0))
    assert without == {"table": 0.0, "twice": 36.0, "state": 62.0}


def test_a_table_that_no_profile_names_is_glue(program: Program) -> None:
    runs = [run_of(), run_of("twice"), run_of("twice"), run_of("state")]
    assert glue_of(runs, program) == {"twice": 1.0, "state": 1.0}


def test_nobody_knows_what_is_glue_where_layers_are_not_named(program: Program) -> None:
    assert glue_of([run_of("table"), run_of(), run_of("state")], program) == {}


def test_a_prediction_adds_every_run_of_every_layer_and_the_glue(program: Program) -> None:
    shapes = layer_shapes(program)
    sites = {site.path: site for site in program.sites}
    costs = LayerCosts(
        {
            (shapes["table"], FP32): Seconds(1.0),
            (shapes["twice"], FP32): Seconds(10.0),
            (shapes["twice"], INT8): Seconds(3.0),
        }
    )
    glue = {"twice": Seconds(100.0), "state": Seconds(200.0)}
    assert predict(program, {}, costs, glue) == 321.0
    assert predict(program, {sites["twice"]: INT8}, costs, glue) == 307.0


def test_a_prediction_is_near_the_census_of_a_real_network(workshop: Workshop) -> None:
    """The layers one by one take about as long as in the network itself, on a busy machine."""
    name = "residual-cnn"
    subject, runtime = workshop.subject(name), catalog.runtime("litert")
    artifact = workshop.artifact(name, "tflite", FP32)
    places = {(shape, FP32) for shape in layer_shapes(subject.program).values()}
    measured = measure_costs(places, "tflite", RUNTIMES["tflite"], workshop.cache, Silence())
    censuses = [list(runtime.kernels(artifact, subject.held_out)) for _ in range(5)]
    found = predict(subject.program, {}, LayerCosts(measured), {})
    sited = min(sum(run.seconds for run in runs if run.sites) for runs in censuses)
    assert sited / 3 < found < sited * 3
