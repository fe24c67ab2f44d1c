"""Measures artifacts in fresh processes of their runtime: outputs, latency, memory, load time."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from edgebuild import runner
from edgebuild.cache import digest
from edgebuild.methods.sparsify import compressed_size
from edgebuild.samples import StoredSamples
from edgebuild.search.accuracy import GLANCED, Accuracy, accuracy_of
from edgebuild.search.case import Case, stored_outputs
from edgebuild.search.estimate import predict_latency
from edgebuild.search.judge import judge
from edgebuild.search.make import Made, runtime_facts
from edgebuild.search.score import divergence, parity
from edgebuild.vocabulary.artifact import Artifact
from edgebuild.vocabulary.contracts import Device, Progress
from edgebuild.vocabulary.errors import DeviceError, EdgebuildError, ParityLost
from edgebuild.vocabulary.measurement import Evidence, Figure, Measurement
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.trial import Parity, Trial
from edgebuild.vocabulary.units import Bytes, Seconds, format_rate

DEADLINE = Seconds(3600.0)
# Outputs are computed side by side; latencies are measured alone.
WORKERS = 2
# A float artifact that is further from its network than this computes something else.
FLOAT_LIMITS = {Precision.FP32: 1e-3, Precision.FP16: 5e-2}
# Memory on another machine of the same runtime and file; its allocator rounds otherwise.
MEMORY_ERROR = 0.2


@dataclass(frozen=True)
class Effort:
    """How long a latency is measured: at least `seconds` and at least `count` inferences.

    `warm_up` are seconds before that, in which caches fill and the clock rises.
    """

    seconds: float
    count: int
    warm_up: float = runner.WARM_UP[1]


# 64 inferences claim a p90, 662 a p99 (MLPerf Inference, early stopping at 99 %).
SEARCHING = Effort(seconds=0.8, count=64)
PROVING = Effort(seconds=5.0, count=700)


def measure(case: Case, made: Sequence[Made], device: Device, progress: Progress) -> list[Trial]:
    """Tries every artifact on the validation split and the clock."""
    _run_side_by_side(case, made, device, progress)
    trials = []
    with progress.step("Measuring latency and memory", total=len(made)) as step:
        for one in made:
            trials.append(_trial(case, one, device))
            step.advance(f"{one.recipe.format} {one.recipe.name}")
    return trials


def _run_side_by_side(case: Case, made: Sequence[Made], device: Device, progress: Progress) -> None:
    """Fills the cache with everybody's outputs; who fails here fails again when they are read."""
    with progress.step("Running on validation data", total=len(made)) as step:

        def run(one: Made) -> None:
            with suppress(EdgebuildError):
                outputs_of(case, one.artifact, case.validation, device)
            step.advance(f"{one.recipe.format} {one.recipe.name}")

        pool = ThreadPoolExecutor(WORKERS)
        try:
            list(pool.map(run, made))
        finally:
            # After Ctrl-C, what is queued must not start, nor what runs be waited for.
            pool.shutdown(wait=False, cancel_futures=True)


def _trial(case: Case, made: Made, device: Device) -> Trial:
    try:
        outputs = outputs_of(case, made.artifact, case.validation, device)
        found = parity_of(case, made, outputs, case.validation)
        loss = divergence(outputs, case.reference(case.validation))
        accuracy = accuracy_of(case, outputs, case.validation)
        measurement = measurement_of(case, made.artifact, device, SEARCHING)
    except (ParityLost, DeviceError) as problem:
        return Trial(
            made.recipe, census=made.census, failure=f"{type(problem).__name__}: {problem}"
        )
    figures = figures_of(case, made, measurement, accuracy, device)
    figures["divergence"] = Figure(loss, Evidence.MEASURED, figures["score"].where)
    verdict = judge(figures, case.budget, case.target)
    return Trial(made.recipe, figures, verdict, found, made.census)


def parity_of(
    case: Case, made: Made, outputs: Sequence[np.ndarray], samples: StoredSamples
) -> Parity:
    """How near an artifact's outputs are to its network's.

    Raises:
        ParityLost: outputs that are no numbers, or a float artifact that computes something else.
    """
    name = f"{made.recipe.format} {made.recipe.name}"
    if not all(np.isfinite(output).all() for output in outputs):
        raise ParityLost(f"{name}: the outputs hold NaN or infinite values")
    numbers = samples.numbers(GLANCED)
    reference = case.reference(samples, made.program, GLANCED)
    found = parity([output[numbers] for output in outputs], reference)
    limits = [FLOAT_LIMITS.get(p, np.inf) for p in made.recipe.precisions.values()]
    limit = max(limits, default=FLOAT_LIMITS[Precision.FP32])
    if found.relative_error > limit:
        raise ParityLost(
            f"{name}: the outputs differ from the network's by {found.relative_error:.2g} of "
            f"their largest value, where rounding explains at most {limit:g}"
        )
    return found


def figures_of(
    case: Case,
    made: Made,
    measurement: Measurement,
    accuracy: Accuracy,
    device: Device,
) -> dict[str, Figure]:
    """Every figure of one artifact, with its evidence, under the budget lines' names."""
    here = f"{device.name} ({measurement.machine})"
    p50, p99 = measurement.percentile(0.5), measurement.percentile(0.99)
    is_target = case.is_on_target
    # Profiles are taken here, whatever runs the artifact otherwise.
    profiled = here if device.is_here else "the build machine"
    note = caveat = "" if is_target else made.artifact.caveat
    if p99.high is None:
        note = f"{len(measurement.latencies)} runs are too few to bound it"
    low, high = p99.low, p99.high
    if not measurement.is_conclusive:
        note = caveat = "INCONCLUSIVE: the two halves of the run disagree"
        # Of two distributions no percentile can be claimed, only where all runs lay.
        low, high = min(measurement.latencies), max(measurement.latencies)
    runtime = runtime_facts(case.target, made.artifact.runtime)
    runs = made.census.runs
    predicted = predict_latency(made.program, made.recipe, case.target, runtime, runs)
    is_bounded = p99.high is not None
    host_p99 = Figure(p99.value, Evidence.MEASURED, here, low, high, note, is_bounded)
    memory = float(measurement.peak_memory)
    figures = {
        "score": Figure(accuracy.score, Evidence.MEASURED, here, basis=case.workload.stand_in),
        "latency_p50": Figure(p50.value, Evidence.MEASURED, here, p50.low, p50.high, caveat),
        "latency_p99": host_p99 if is_target else predicted,
        "host_latency_p99": host_p99,
        "memory": Figure(memory, Evidence.MEASURED, here)
        if is_target
        else Figure(
            memory,
            Evidence.PREDICTED,
            case.target.name,
            memory * (1 - MEMORY_ERROR),
            memory * (1 + MEMORY_ERROR),
            "measured on host, same runtime and file",
        ),
        "load_time": Figure(measurement.load, Evidence.MEASURED, here),
        "integer_kernels": Figure(
            made.census.integer_share_of_kernels, Evidence.MEASURED, profiled
        ),
        "integer_time": Figure(made.census.integer_share_of_time, Evidence.MEASURED, profiled),
        # A file has the same size everywhere.
        "storage": Figure(made.artifact.size, Evidence.MEASURED, "the file"),
        "accuracy_drop": Figure(
            accuracy.lost,
            Evidence.MEASURED if is_target else Evidence.PREDICTED,
            here if is_target else case.target.name,
            # What was lost on these samples was lost; others might lose more.
            *(accuracy.lost, accuracy.most_lost),
            note=_of_accuracy(accuracy, is_target),
            is_bounded=accuracy.is_bounded,
            basis=case.workload.stand_in,
        ),
    }
    if case.budget.download is not None:
        size = _download_size(case, made.artifact)
        figures["download"] = Figure(size, Evidence.MEASURED, "the file, deflated")
    power = _power(case, figures["latency_p99"])
    return figures if power is None else {**figures, "power": power}


def _of_accuracy(accuracy: Accuracy, is_target: bool) -> str:
    if not accuracy.is_bounded:
        return "one sample says nothing of others: give more of them"
    return "" if is_target else "measured on host in the same runtime"


def _download_size(case: Case, artifact: Artifact) -> Bytes:
    def make(folder: Path) -> None:
        (folder / "size").write_text(str(compressed_size(artifact.path)))

    entry = case.cache.entry("download", artifact.path.parent.name, make)
    return Bytes(int((entry / "size").read_text()))


def _power(case: Case, latency: Figure) -> Figure | None:
    """Power above idle at the wished rate, at most (active - idle) x latency x rate."""
    facts, rate = case.target.power, case.budget.rate
    if facts.idle is None or facts.active is None or rate is None:
        return None
    above = facts.active - facts.idle
    _, slowest = latency.interval
    return Figure(
        value=above * min(latency.value * rate, 1.0),
        evidence=Evidence.MODELLED_BOUND,
        where=case.target.name,
        # The board's draw under full load bounds it from above; nothing known bounds it from below.
        low=0.0,
        high=above * min(slowest * rate, 1.0),
        note="full-load power above idle × predicted busy time",
        basis=f"at {format_rate(rate)}",
    )


def outputs_of(
    case: Case, artifact: Artifact, samples: StoredSamples, device: Device
) -> list[np.ndarray]:
    """The artifact's outputs over a split, in its runtime on the device."""

    def run(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            spec = _specified(artifact, 1, device, Path(scratch))
            remote = f"{device.push(spec.parent)}/outputs"
            words = _loader(spec, device, "outputs", device.push(samples.folder), remote)
            _run(device, "outputs", words)
            device.pull(remote, folder)

    key = digest(artifact.path.parent.name, samples.digest, device.name, device.identity)
    return stored_outputs(case.cache.entry("outputs", key, run))


def measurement_of(case: Case, artifact: Artifact, device: Device, effort: Effort) -> Measurement:
    """Latency, memory and load time of the artifact in a fresh process on the device."""
    threads = runtime_facts(case.target, artifact.runtime).threads
    form = TypeAdapter(Measurement)

    def run(folder: Path) -> None:
        taken = clock(artifact, case.calibration, threads, device, effort)
        (folder / "measurement.json").write_bytes(form.dump_json(taken))

    key = digest(
        artifact.path.parent.name,
        *(case.calibration.digest, threads, effort.seconds, effort.count),
        *(device.name, device.identity),
    )
    folder = case.cache.entry("measurement", key, run)
    measurement = form.validate_json((folder / "measurement.json").read_bytes())
    if not measurement.is_conclusive:
        # The next build may find a quieter machine.
        case.cache.forget(folder)
    return measurement


def clock(
    artifact: Artifact, samples: StoredSamples, threads: int, device: Device, effort: Effort
) -> Measurement:
    """One measurement, taken anew."""
    with tempfile.TemporaryDirectory() as scratch:
        words = clocking(artifact, samples, threads, device, effort, Path(scratch))
        return clocked(_run(device, "bench", words))


def clocking(
    artifact: Artifact,
    samples: StoredSamples,
    threads: int,
    device: Device,
    effort: Effort,
    scratch: Path,
) -> list[str]:
    """The script, and its arguments, that measures an artifact on a device."""
    spec = _specified(artifact, threads, device, scratch)
    asked = ["--raw", "--inputs", device.push(samples.folder), "--seconds", str(effort.seconds)]
    asked += ["--count", str(effort.count), "--warm-up", str(effort.warm_up)]
    return _loader(spec, device, "bench", *asked)


def clocked(said: str) -> Measurement:
    """What that script has printed."""
    return TypeAdapter(Measurement).validate_json(said)


def _specified(artifact: Artifact, threads: int, device: Device, folder: Path) -> Path:
    """A manifest that says just what the loader needs to know on a device."""
    record = {
        "file": device.push(artifact.path),
        "format": artifact.format,
        "inputs": artifact.inputs,
        "outputs": artifact.outputs,
        "settings": dict(artifact.settings),
        "minimum_runtime": dict(artifact.minimum_runtime),
    }
    path = folder / "manifest.json"
    path.write_text(json.dumps({"threads": threads, "artifact": record}))
    return path


def _loader(spec: Path, device: Device, command: str, *options: str) -> list[str]:
    script = device.push(Path(runner.__file__))
    return [script, "--manifest", device.push(spec), command, *options]


def _run(device: Device, command: str, words: Sequence[str]) -> str:
    done = device.run(["python", *words], DEADLINE)
    if done.returncode != 0:
        raise DeviceError(f"{command} on {device.name} failed: {done.reason}")
    return done.stdout
