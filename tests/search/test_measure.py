"""What an artifact says is compared with its network, and figures say where they are from."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_build
from listening import Listening

from edgebuild import catalog
from edgebuild.inputs.target_file import load_target
from edgebuild.search import measure as measure_module
from edgebuild.search import prove as prove_module
from edgebuild.search.accuracy import Accuracy
from edgebuild.search.case import Case, open_case
from edgebuild.search.make import Made, make
from edgebuild.search.measure import Effort, figures_of, measure, measurement_of
from edgebuild.search.prove import prove
from edgebuild.search.uniform import uniform_recipes
from edgebuild.vocabulary.contracts import Device
from edgebuild.vocabulary.errors import ParityLost
from edgebuild.vocabulary.measurement import Evidence, Measurement
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.silence import Silence
from edgebuild.vocabulary.trial import Trial
from edgebuild.vocabulary.units import Bytes

SHORT = Effort(seconds=0.0, count=64)


@pytest.fixture
def device() -> Iterator[Device]:
    with catalog.device("local") as device:
        yield device


@pytest.fixture(scope="module")
def made(case: Case) -> Made:
    """The small network in fp32."""
    (recipe,) = uniform_recipes(case, {}, ["onnx"], [Precision.FP32])
    (found,), _ = make(case, [recipe], Silence())
    return found


@pytest.fixture(autouse=True)
def _short_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_module, "SEARCHING", SHORT)
    monkeypatch.setattr(prove_module, "PROVING", SHORT)


def tried(case: Case, made: Made, device: Device) -> Trial:
    (trial,) = measure(case, [made], device, Silence())
    return trial


def test_what_a_busy_machine_left_inconclusive_is_measured_again(
    case: Case, made: Made, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, taken = measure_module.clock, []

    def clock(*arguments: Any) -> Measurement:
        taken.append(real(*arguments))
        return taken[-1]

    effort = Effort(seconds=0.0, count=65)
    monkeypatch.setattr(measure_module, "clock", clock)
    for is_conclusive, measured in ((False, 1), (True, 2), (True, 2)):
        monkeypatch.setattr(Measurement, "is_conclusive", is_conclusive)
        assert measurement_of(case, made.artifact, device, effort) == taken[-1]
        assert len(taken) == measured


def test_a_download_is_as_large_as_the_file_in_an_archive(
    case: Case, made: Made, device: Device, tmp_path: Path
) -> None:
    asked = replace(case, budget=replace(case.budget, download=Bytes(10_000)))
    figure = tried(asked, made, device).figures["download"]
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        packed.write(made.artifact.path, "model")
    overhead = archive.stat().st_size - packed.getinfo("model").compress_size
    assert figure.value == pytest.approx(archive.stat().st_size - overhead, abs=16)
    assert "download" not in tried(case, made, device).figures


# ---- parity


def test_a_float_artifact_computes_what_its_network_does(
    case: Case, made: Made, device: Device
) -> None:
    trial = tried(case, made, device)
    assert trial.failure == ""
    assert trial.score == 1.0
    assert trial.parity is not None
    assert trial.parity.relative_error < 1e-5


def outputs_with(monkeypatch: pytest.MonkeyPatch, value: float, wrong: float) -> None:
    """Lets every artifact say what it says, but for one value that goes wrong."""
    real = measure_module.outputs_of

    def wronged(*asked: object) -> list[np.ndarray]:
        outputs = [output.copy() for output in real(*asked)]  # type: ignore[arg-type]
        outputs[0].flat[0] = outputs[0].flat[0] * value + wrong
        return outputs

    monkeypatch.setattr(measure_module, "outputs_of", wronged)
    monkeypatch.setattr(prove_module, "outputs_of", wronged)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (np.nan, "the outputs hold NaN or infinite values"),
        (np.inf, "the outputs hold NaN or infinite values"),
        (1.0, "the outputs differ from the network's by"),
    ],
)
def test_lost_outputs_are_a_failed_trial_and_no_proof(
    wrong: float,
    reason: str,
    case: Case,
    made: Made,
    device: Device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outputs_with(monkeypatch, 1.0, wrong)
    trial = tried(case, made, device)
    assert trial.failure.startswith(f"ParityLost: onnx fp32: {reason}")
    assert trial.figures == {}
    with pytest.raises(ParityLost, match=reason):
        prove(case, made, device, Silence())


# ---- evidence


def test_elsewhere_only_the_score_and_the_file_are_known_for_the_target(
    case: Case, made: Made, device: Device
) -> None:
    figures = tried(case, made, device).figures
    for name in ("latency_p99", "memory", "accuracy_drop", "power"):
        expected = Evidence.MODELLED_BOUND if name == "power" else Evidence.PREDICTED
        assert figures[name].evidence is expected
        assert figures[name].where == case.target.name
    for name in ("score", "latency_p50", "host_latency_p99", "storage"):
        assert figures[name].evidence is Evidence.MEASURED
        assert case.target.name not in figures[name].where


def test_on_the_target_itself_all_is_measured(case: Case, made: Made, device: Device) -> None:
    here = replace(case, target=load_target("host"))
    measurement = measurement_of(here, made.artifact, device, SHORT)
    figures = figures_of(here, made, measurement, Accuracy(1.0, 0.0), device)
    assert {figure.evidence for figure in figures.values()} == {Evidence.MEASURED}
    assert figures["latency_p99"] == figures["host_latency_p99"]


def test_power_is_modelled_only_from_facts_and_at_a_rate(
    case: Case, made: Made, device: Device
) -> None:
    measurement = measurement_of(case, made.artifact, device, SHORT)

    def found(changed: Case) -> bool:
        return "power" in figures_of(changed, made, measurement, Accuracy(1.0, 0.0), device)

    assert found(case)
    assert not found(replace(case, budget=replace(case.budget, rate=None)))
    powerless = replace(case.target, power=replace(case.target.power, idle=None))
    assert not found(replace(case, target=powerless))


def test_power_never_exceeds_that_of_a_device_that_is_always_busy(
    case: Case, made: Made, device: Device
) -> None:
    busy = replace(case, budget=replace(case.budget, rate=1e12))
    measurement = measurement_of(busy, made.artifact, device, SHORT)
    power = figures_of(busy, made, measurement, Accuracy(1.0, 0.0), device)["power"]
    facts = case.target.power
    assert facts.active is not None
    assert facts.idle is not None
    assert power.value == pytest.approx(facts.active - facts.idle)
    assert power.interval[1] == pytest.approx(facts.active - facts.idle)


def test_what_was_measured_is_not_measured_again(
    case: Case, made: Made, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measurement_of(case, made.artifact, device, SHORT)
    monkeypatch.setattr(device, "run", small_build.failing(AssertionError("ran again")))
    assert measurement_of(case, made.artifact, device, SHORT) == first


@pytest.mark.parametrize(("count", "is_told"), [(1, True), (7, True), (8, False)])
def test_calibration_data_that_are_too_small_are_said_to_be(
    case: Case, count: int, is_told: bool
) -> None:
    given, said = replace(case.workload, calibration=small_build.images(count, 0)), Listening()
    open_case(given, case.target, case.budget, case.cache, said)
    told = [text for text in said.said if f"too small: {count} of at least 8 samples" in text]
    assert bool(told) is is_told
