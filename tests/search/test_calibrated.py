"""A probe's timings become predictions: of kernels, of whole networks, and of what is amiss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from edgebuild.search.calibrated import Predictor, predictor
from edgebuild.search.kernel_classes import Sample, line_through
from edgebuild.vocabulary.artifact import KernelWork
from edgebuild.vocabulary.calibration import (
    TICK,
    KernelSample,
    Load,
    NetworkSample,
    ProbedRuntime,
)
from edgebuild.vocabulary.units import Bytes, Seconds

START, MAC, BYTE = 5e-6, 2e-11, 1e-10
NOTING, CALL = 3e-6, 50e-6
LOAD = Load(2, Bytes(0))
Law = Callable[[KernelWork], float]


def work(rng: np.random.Generator, form: str = "linear", numerics: str = "fp32") -> KernelWork:
    """A layer of some rows in drawn widths."""
    rows, inputs, outputs = (int(2 ** rng.uniform(4, 9)) for _ in range(3))
    size = 4 if numerics == "fp32" else 1
    return KernelWork(
        form,
        numerics,
        rows * inputs * outputs,
        Bytes(size * inputs * outputs),
        Bytes(size * rows * inputs),
        Bytes(size * rows * outputs),
        inputs,
        outputs,
    )


def truth(work: KernelWork) -> float:
    return START + MAC * work.macs + BYTE * (work.weights + work.read + work.written)


def network(name: str, works: list[KernelWork], law: Law = truth) -> NetworkSample:
    """As it would be measured: the profile adds to each kernel, the call to all of them."""
    times = [Seconds(law(one) + NOTING) for one in works]
    kernels = tuple(
        KernelSample(one.form, one, time, time) for one, time in zip(works, times, strict=True)
    )
    return NetworkSample(name, kernels, LOAD, Seconds(sum(map(law, works)) + CALL))


def fitted(law: Law = truth, forms: tuple[str, ...] = ("linear",)) -> Predictor:
    rng = np.random.default_rng(0)
    networks = tuple(
        network(
            f"{number}", [work(rng, form) for form in forms for _ in range(2 + 3 * number)], law
        )
        for number in range(8)
    )
    return predictor(ProbedRuntime("litert", "litert 1", 1, networks))


def test_the_fit_recovers_what_kernels_and_calls_take() -> None:
    found = fitted()
    assert found.call(LOAD) == pytest.approx(CALL, rel=0.2)
    rng = np.random.default_rng(1)
    for _ in range(20):
        unseen = work(rng)
        seconds, _ = found.kernel(unseen)
        assert seconds == pytest.approx(truth(unseen), rel=0.05)


def test_what_no_line_explains_is_learned_from_the_shapes() -> None:
    def uneven(work: KernelWork) -> float:
        return truth(work) * (1.8 if work.outputs < 64 else 1.0)

    found, rng = fitted(uneven), np.random.default_rng(1)
    errors = []
    for _ in range(40):
        unseen = work(rng)
        errors.append(abs(math.log(found.kernel(unseen)[0] / uneven(unseen))))
    assert np.mean(errors) < 0.15


def test_the_interval_covers_networks_that_were_not_seen() -> None:
    noise = np.random.default_rng(2)

    def noisy(work: KernelWork) -> float:
        return truth(work) * math.exp(noise.normal(0, 0.1))

    found, rng = fitted(noisy), np.random.default_rng(3)
    inside = 0
    for _ in range(40):
        works = [work(rng) for _ in range(10)]
        told = found.network(works, LOAD)
        assert told.low < told.seconds < told.high
        inside += told.low <= sum(map(noisy, works)) + CALL <= told.high
    assert inside >= 36


def test_a_class_that_was_never_probed_is_named_and_widens_the_interval() -> None:
    found, rng = fitted(), np.random.default_rng(1)
    known = [work(rng) for _ in range(5)]
    strange = [replace(one, form="fourier") for one in known]
    told, guessed = found.network(known, LOAD), found.network(strange, LOAD)
    assert told.unknown == ()
    assert guessed.unknown == ("fourier fp32",)
    assert guessed.high / guessed.low > 2 * told.high / told.low


def test_an_integer_kernel_slower_than_floats_is_named() -> None:
    rng = np.random.default_rng(0)

    def law(work: KernelWork) -> float:
        is_slow = work.form == "MaxPool" and work.numerics == "int8-static"
        return truth(work) * (40 if is_slow else 1)

    pairs = [("linear", "fp32"), ("linear", "int8-static")]
    pairs += [("MaxPool", "fp32"), ("MaxPool", "int8-static")]
    networks = tuple(
        network(f"{number}", [work(rng, *pair) for pair in pairs for _ in range(3 + number)], law)
        for number in range(6)
    )
    found = predictor(ProbedRuntime("onnxruntime", "onnxruntime 1", 1, networks))
    works = [work(rng, form, "int8-static") for form in ("linear", "MaxPool") for _ in range(4)]
    told = found.network(works, LOAD)
    (slow,) = told.slow
    assert slow.startswith("MaxPool int8-static (")


def test_what_a_call_carries_takes_time() -> None:
    rng, copying = np.random.default_rng(0), 2e-10
    networks = []
    for number in range(12):
        one = network(f"{number}", [work(rng) for _ in range(2 + number)])
        carried = int(1e6 * rng.uniform(0, 8))
        seconds = Seconds(one.seconds + copying * carried)
        networks.append(replace(one, load=Load(2, Bytes(carried)), seconds=seconds))
    found = predictor(ProbedRuntime("litert", "litert 1", 1, tuple(networks)))
    works = [work(rng) for _ in range(5)]
    more = found.network(works, Load(2, Bytes(10**7))).seconds - found.network(works, LOAD).seconds
    assert more == pytest.approx(copying * 10**7, rel=0.2)


def test_what_a_cold_kernel_waits_for_does_not_count_where_caches_hold_the_network() -> None:
    rng, waits = np.random.default_rng(0), 20e-6
    small = [replace(one, macs=one.macs // 1000) for one in (work(rng) for _ in range(200))]
    networks = []
    for number in range(8):
        one = network(f"{number}", small[10 * number :][: 2 + 3 * number])
        cold = [replace(kernel, cold=Seconds(kernel.hot + waits)) for kernel in one.kernels]
        networks.append(replace(one, kernels=tuple(cold)))
    found = predictor(ProbedRuntime("litert", "litert 1", 1, tuple(networks)))
    unseen = small[-20:]
    told = sum(found.kernel(one, around=0.0)[0] for one in unseen)
    assert told == pytest.approx(sum(map(truth, unseen)), rel=0.1)


def test_kernels_that_are_too_short_for_the_clock_do_not_bend_the_line() -> None:
    """A clock of whole microseconds reads nothing where a kernel takes less."""
    rng, rate = np.random.default_rng(0), 1e-11

    def samples(count: int, low: float, high: float) -> list[Sample]:
        sizes = [int(10 ** rng.uniform(math.log10(low), math.log10(high))) for _ in range(count)]
        works = [
            KernelWork("linear", "int8-static", size, Bytes(size), Bytes(0), Bytes(0), 16, 16)
            for size in sizes
        ]
        return [
            (one, 0.0, rate * one.weights if one.weights * rate > TICK else 0.0) for one in works
        ]

    short, long = samples(200, 2e4, 9e4), samples(20, 3e5, 2e6)
    line = line_through([*short, *long])
    for one, missed, seconds in long:
        assert line.seconds(one, missed) == pytest.approx(seconds, rel=0.1)


def test_kernels_that_the_clock_does_not_show_take_what_their_networks_tell() -> None:
    """They say nothing of what noting the others takes."""
    rng, untold = np.random.default_rng(0), Seconds(0.4e-6)

    def with_short_ones(number: int) -> NetworkSample:
        longer = network(f"{number}", [work(rng) for _ in range(2 + number % 4)])
        short = replace(work(rng, "Add"), macs=0)
        unseen = KernelSample("Add", short, Seconds(0.0), Seconds(0.0))
        count = 40 * (number % 3)
        seconds = Seconds(longer.seconds + count * untold)
        return replace(longer, kernels=(*longer.kernels, *[unseen] * count), seconds=seconds)

    networks = tuple(with_short_ones(number) for number in range(12))
    found = predictor(ProbedRuntime("litert", "litert 1", 1, networks))
    of_one = work(rng)
    assert found.network([of_one], LOAD).seconds == pytest.approx(truth(of_one) + CALL, rel=0.1)
    short = networks[1].kernels[-1].work
    assert found.kernel(short)[0] == pytest.approx(untold, rel=0.3)
