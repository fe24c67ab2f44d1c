"""A predicted latency grows with the work, shrinks with the bits, and lies in its interval."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebuild.inputs.target_file import load_target, target_names
from edgebuild.search.case import Case
from edgebuild.search.estimate import predict_latency
from edgebuild.vocabulary.measurement import Evidence, Figure
from edgebuild.vocabulary.offer import Choice
from edgebuild.vocabulary.precision import LayerKind, Precision
from edgebuild.vocabulary.program import Operator, Program, Site
from edgebuild.vocabulary.recipe import Recipe
from edgebuild.vocabulary.target import Target

COUNTS = st.integers(min_value=0, max_value=10**9)
WORK = st.lists(st.tuples(COUNTS, COUNTS, COUNTS, st.booleans()), min_size=1, max_size=5)
# By name, so that a failing example stays short.
TARGET = st.sampled_from(target_names())
Work = list[tuple[int, int, int, bool]]


def program_of(work: Work) -> Program:
    """Operators of so many MACs, weights and activations, some of which are layers."""
    operators = tuple(
        Operator(
            f"operator-{number}",
            Site(str(number), LayerKind.LINEAR) if is_layer else None,
            macs,
            weights,
            activations,
        )
        for number, (macs, weights, activations, is_layer) in enumerate(work)
    )
    sites = tuple(operator.site for operator in operators if operator.site)
    program: Any = SimpleNamespace(sites=sites, operators=operators)
    return program  # type: ignore[no-any-return]


def predicted(program: Program, target: Target, precision: Precision = Precision.FP32) -> Figure:
    chosen = tuple((site, Choice("quantize", precision)) for site in program.sites)
    recipe = Recipe("a test's", "any", chosen)
    return predict_latency(program, recipe, target, target.runtimes[0])


@given(work=WORK, name=TARGET, precision=st.sampled_from(Precision))
def test_the_value_lies_in_its_interval_and_says_what_it_is(
    work: Work, name: str, precision: Precision
) -> None:
    target = load_target(name)
    found = predicted(program_of(work), target, precision)
    low, high = found.interval
    assert 0 <= low <= found.value <= high
    assert found.evidence is Evidence.PREDICTED
    assert found.where == target.name
    assert found.note


@given(
    work=WORK,
    more=st.tuples(COUNTS, COUNTS, COUNTS),
    name=TARGET,
    precision=st.sampled_from(Precision),
)
def test_more_work_is_never_predicted_to_take_less_time(
    work: Work, more: tuple[int, int, int], name: str, precision: Precision
) -> None:
    target = load_target(name)
    macs, weights, activations, is_layer = work[0]
    grown = (macs + more[0], weights + more[1], activations + more[2], is_layer)
    less = predicted(program_of(work), target, precision)
    most = predicted(program_of([grown, *work[1:]]), target, precision)
    assert most.value >= less.value
    assert most.interval[0] >= less.interval[0]
    assert most.interval[1] >= less.interval[1]


@given(work=WORK, name=TARGET)
def test_integers_are_never_predicted_slower_where_their_peak_is_no_lower(
    work: Work, name: str
) -> None:
    target = load_target(name)
    assert target.compute.int8 >= target.compute.fp32
    program = program_of(work)
    float_time = predicted(program, target).value
    for precision in Precision:
        assert predicted(program, target, precision).value <= float_time * (1 + 1e-12)


@given(work=WORK, name=TARGET)
def test_a_faster_device_is_never_predicted_slower(work: Work, name: str) -> None:
    target = load_target(name)
    compute = replace(target.compute, fp32=target.compute.fp32 * 2)
    memory = replace(target.memory, bandwidth=target.memory.bandwidth * 2)
    program = program_of(work)
    faster = predicted(program, replace(target, compute=compute, memory=memory))  # type: ignore[arg-type]
    assert faster.value <= predicted(program, target).value


def test_half_the_threads_take_twice_as_long_where_arithmetic_binds() -> None:
    target = load_target("robot-raspberry-pi-5")
    program = program_of([(10**9, 1, 0, True)])
    runtime = target.runtimes[0]
    halved = replace(runtime, threads=target.compute.cores // 2)
    recipe = Recipe("a test's", "any", ())
    whole = predict_latency(program, recipe, target, runtime).value
    half = predict_latency(program, recipe, target, halved).value
    assert half == pytest.approx(2 * whole)


def test_only_what_is_quantized_gets_faster() -> None:
    target = load_target("robot-raspberry-pi-5")
    program = program_of([(10**9, 0, 0, False)])
    assert predicted(program, target, Precision.INT8_STATIC) == predicted(program, target)


def test_a_real_network_is_predicted_between_nothing_and_a_second(case: Case) -> None:
    found = predicted(case.program, case.target)
    assert 0 < found.value < 1
    assert predicted(case.program, case.target, Precision.INT8_STATIC).value < found.value
