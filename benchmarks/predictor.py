"""Predicts whole networks from a probe of this machine, and measures them.

    python benchmarks/predictor.py [NETWORK ...] [--keep FILE]

Probes this machine as `edgebuild probe` does, and predicts networks that were never part of it,
in both runtimes, in fp32 and INT8. Each is measured with the loader in fresh processes, before the
probe and after it: all on one thread, as the host's profile has it. Writes
benchmarks/results/predictor.json, .md and .svg.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from predictor_networks import SUBJECTS, subject
from pydantic import TypeAdapter

from edgebuild import catalog
from edgebuild.cache import Cache, default_root, digest
from edgebuild.capture import capture
from edgebuild.inputs.target_file import load_target
from edgebuild.report.progress import shown
from edgebuild.report.terminal import stderr
from edgebuild.samples import StoredSamples, store_split
from edgebuild.search.calibrated import predictor
from edgebuild.search.estimate import load_of
from edgebuild.search.measure import Effort, clock
from edgebuild.search.probe import probe
from edgebuild.search.uniform import exporters_of, uniform
from edgebuild.vocabulary.artifact import Artifact, KernelRun
from edgebuild.vocabulary.calibration import Calibration, Load, typical
from edgebuild.vocabulary.contracts import Device, Exporter, Progress
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.program import Program
from edgebuild.vocabulary.recipe import Candidate
from edgebuild.vocabulary.target import RuntimeFacts, Target

RESULTS = Path(__file__).parent / "results" / "predictor.json"
PRECISIONS = (Precision.FP32, Precision.INT8_STATIC)
# Fresh processes, apart in time: what disturbs one does not disturb all. On both sides of the
# probe, since a shared machine is not as fast in one minute as in the other.
BEFORE, AFTER = 2, 2
EFFORT = Effort(seconds=0.5, count=32)

Row = dict[str, Any]


@dataclass(frozen=True)
class _Made:
    """One network in one format and precision, with the kernels that its runtime ran."""

    network: str
    precision: Precision
    artifact: Artifact
    samples: StoredSamples
    kernels: tuple[KernelRun, ...]
    load: Load


def main() -> None:
    options = _options()
    cache, target = Cache(default_root()), load_target("host")
    with shown(stderr()) as progress, catalog.device("local") as device:
        made = list(_all_made(options.networks or list(SUBJECTS), target, cache, progress))
        turns = list(_measured(made, BEFORE, device, progress))
        calibration = probe(target, device, cache, progress)
        turns += _measured(made, AFTER, device, progress)
        # Whatever else the machine does can only slow it down.
        seconds = list(map(min, zip(*turns, strict=True)))
        rows = [_row(one, taken, calibration) for one, taken in zip(made, seconds, strict=True)]
    if options.keep:
        options.keep.write_bytes(TypeAdapter(Calibration).dump_json(calibration))
    RESULTS.write_text(json.dumps(_document(rows, calibration), indent=1) + "\n")
    write_summary(RESULTS)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(SUBJECTS))
    parser.add_argument("--keep", type=Path, metavar="FILE", help="for what the probe has timed")
    return parser.parse_args()


def _all_made(
    names: Sequence[str], target: Target, cache: Cache, progress: Progress
) -> Iterator[_Made]:
    with progress.step("Exporting the networks", total=len(names)) as step:
        for name in names:
            one = subject(name)
            program = capture(one.network, one.example)
            samples = store_split([(one.example, None)], one.example, "example", cache)
            for exporter, runtime in exporters_of(target, catalog.names("exporters")):
                for precision in PRECISIONS:
                    yield _made(name, precision, program, samples, exporter, runtime, cache)
            step.advance(name)


def _made(
    name: str,
    precision: Precision,
    program: Program,
    samples: StoredSamples,
    exporter: Exporter,
    runtime: RuntimeFacts,
    cache: Cache,
) -> _Made:
    recipe = uniform(precision, program.sites, exporter, runtime)

    def export(folder: Path) -> None:
        candidate = Candidate(recipe, program, samples.folder, runtime)
        artifact = exporter.export(candidate, folder)
        (folder / "artifact.json").write_bytes(TypeAdapter(Artifact).dump_json(artifact))

    key = digest(program.fingerprint, recipe.digest, runtime.activations)
    folder = cache.entry("predicted", key, export)
    artifact = TypeAdapter(Artifact).validate_json((folder / "artifact.json").read_bytes())
    artifact = Artifact(**{**vars(artifact), "path": folder / artifact.path.name})
    kernels = tuple(catalog.runtime(artifact.runtime).kernels(artifact, samples))
    return _Made(name, precision, artifact, samples, kernels, load_of(program))


def _measured(
    made: Sequence[_Made], turns: int, device: Device, progress: Progress
) -> Iterator[Sequence[float]]:
    """What a call of each takes in a fresh process, turn after turn, in seconds."""
    with progress.step("Measuring", total=turns * len(made)) as step:
        for _ in range(turns):
            seconds = []
            for one in made:
                found = clock(one.artifact, one.samples, 1, device, EFFORT)
                seconds.append(typical(found.latencies))
                step.advance(f"{one.network} {one.precision}")
            yield seconds


def _row(made: _Made, seconds: float, calibration: Calibration) -> Row:
    probed = calibration.runtime(made.artifact.runtime)
    assert probed is not None
    works = [run.work for run in made.kernels if run.work is not None]
    found = predictor(probed).network(works, made.load)
    return {
        "network": made.network,
        "runtime": made.artifact.runtime,
        "precision": str(made.precision),
        "measured_ms": 1e3 * seconds,
        "predicted_ms": 1e3 * found.seconds,
        "low_ms": 1e3 * found.low,
        "high_ms": 1e3 * found.high,
        "error": found.seconds / seconds - 1,
        "never_probed": list(found.unknown),
        "slow_kernels": list(found.slow),
    }


def _document(rows: Sequence[Row], calibration: Calibration) -> dict[str, Any]:
    return {
        "made_by": "make bench-predictor",
        "versions": {runtime.name: runtime.version for runtime in calibration.runtimes},
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "threads": 1,
            # How busy it was besides: above one, something else was running.
            "load_average": round(os.getloadavg()[1], 1),
            "probed_at": calibration.taken_at,
            "made_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
        "rows": list(rows),
    }


def write_summary(results: Path) -> None:
    """Writes the table and the plot beside the results."""
    document = json.loads(results.read_text())
    lines = [*_goals(document["rows"], document["machine"]), *_table(document["rows"])]
    results.with_suffix(".md").write_text("\n".join(lines) + "\n")
    _plot(document["rows"], results.with_suffix(".svg"))


def _goals(rows: Sequence[Row], machine: Row) -> Iterator[str]:
    yield "# Whole networks, predicted from a probe of their kernels"
    yield ""
    yield (
        "Made by `make bench-predictor` from predictor.json: this machine was probed, "
        "none of these networks was part of it, and each was measured with the loader in fresh "
        "processes before and after; all on one thread. The machine's load average at the end was "
        f"{machine['load_average']:g}."
    )
    yield ""
    yield "| runtime | precision | networks | mean error | worst | inside the interval |"
    yield "|-|-|-|-|-|-|"
    groups = {(row["runtime"], row["precision"]) for row in rows}
    for runtime, precision in [*sorted(groups), ("all", "all")]:
        group = [
            row
            for row in rows
            if runtime == "all" or (row["runtime"], row["precision"]) == (runtime, precision)
        ]
        errors = [abs(row["error"]) for row in group]
        inside = sum(row["low_ms"] <= row["measured_ms"] <= row["high_ms"] for row in group)
        cells = [
            *(runtime, precision, str(len(group)), f"{100 * statistics.fmean(errors):.1f} %"),
            *(f"{100 * max(errors):.1f} %", f"{100 * inside / len(group):.0f} %"),
        ]
        yield f"| {' | '.join(cells)} |"
    yield ""


def _table(rows: Sequence[Row]) -> Iterator[str]:
    yield "| network | runtime | precision | measured, ms | predicted, ms | error | to be told |"
    yield "|-|-|-|-|-|-|-|"
    for row in rows:
        unknown = [f"never probed: {kind}" for kind in row["never_probed"]]
        slow = [f"slow: {kernel}" for kernel in row["slow_kernels"]]
        cells = [
            *(row["network"], row["runtime"], row["precision"], f"{row['measured_ms']:.3g}"),
            f"{row['predicted_ms']:.3g} ({row['low_ms']:.3g} to {row['high_ms']:.3g})",
            *(f"{100 * row['error']:+.1f} %", "; ".join([*unknown, *slow])),
        ]
        yield f"| {' | '.join(cells)} |"


def _plot(rows: Sequence[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    # The same results draw the same file.
    matplotlib.rcParams["svg.hashsalt"] = "edgebuild"
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 6))
    for runtime, precision in sorted({(row["runtime"], row["precision"]) for row in rows}):
        group = [r for r in rows if (r["runtime"], r["precision"]) == (runtime, precision)]
        predicted = [row["predicted_ms"] for row in group]
        around = [
            [row["predicted_ms"] - row["low_ms"] for row in group],
            [row["high_ms"] - row["predicted_ms"] for row in group],
        ]
        measured = [row["measured_ms"] for row in group]
        axis.errorbar(
            measured, predicted, around, fmt="o", markersize=4, label=f"{runtime} {precision}"
        )
    axis.set(xscale="log", yscale="log", xlabel="measured, ms", ylabel="predicted, ms")
    low, high = axis.get_xlim()
    axis.plot([low, high], [low, high], color="gray", linewidth=0.8)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
