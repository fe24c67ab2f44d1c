"""Asks what distillation and quantization-aware training are good for: with them and without.

    python benchmarks/search/recovery.py [WORKLOAD ...] [--seeds 3] [--steps 200]

A smaller student of each workload's network is trained by the labels, by the teacher, and by the
teacher with its weights on a grid; all for as many steps. Scores are of the exported artifact on
the test split. Every training is a piece of its own in benchmarks/results/recovery.json: run the
command again and it goes on.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pieces import Results, Row
from torch import nn

from edgebuild import catalog
from edgebuild.cache import Cache, default_root, digest
from edgebuild.capture import capture
from edgebuild.inputs.target_file import load_target
from edgebuild.inputs.workload_file import load_workload
from edgebuild.methods.distill import Distill
from edgebuild.report.progress import shown
from edgebuild.report.terminal import stderr
from edgebuild.search.case import Case, open_case
from edgebuild.search.measure import outputs_of
from edgebuild.search.reshape import reshaped_network
from edgebuild.search.uniform import exporters_of, uniform
from edgebuild.vocabulary.contracts import Device, Progress, Workplace
from edgebuild.vocabulary.errors import EdgebuildError
from edgebuild.vocabulary.offer import NETWORK, Choice
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.recipe import Candidate
from edgebuild.vocabulary.target import Budget

HERE = Path(__file__).parent
WORKLOADS = ("vehicles", "pneumonia", "solar_cells")
RESULTS = HERE.parent / "results" / "recovery.json"
FORMAT = "onnx"
# Nobody has labeled varied images.
LABELS = Distill(label_weight=1.0, feature_weight=0.0, light_step=0.0)
# How a student is trained: by whom, and on which grid; and in what it is exported then.
LESSONS: Mapping[str, tuple[Distill | None, str, tuple[Precision, ...]]] = {
    "untrained": (None, "", (Precision.FP32,)),
    "labels": (LABELS, "", (Precision.FP32,)),
    "distilled": (
        *(Distill(), ""),
        (Precision.FP32, Precision.INT8_STATIC, Precision.INT4_WEIGHTS),
    ),
    "distilled, qat int8": (Distill(), ", qat int8", (Precision.INT8_STATIC,)),
    "distilled, qat int4": (Distill(), ", qat int4", (Precision.INT4_WEIGHTS,)),
}
# What is compared: without, and with.
PAIRS = (
    ("distillation", ("labels", Precision.FP32), ("distilled", Precision.FP32)),
    (
        "quantization-aware training, int8",
        ("distilled", Precision.INT8_STATIC),
        ("distilled, qat int8", Precision.INT8_STATIC),
    ),
    (
        "quantization-aware training, int4",
        ("distilled", Precision.INT4_WEIGHTS),
        ("distilled, qat int4", Precision.INT4_WEIGHTS),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    results = Results(RESULTS)
    with shown(stderr()) as progress, catalog.device("local") as device:
        for name in options.workloads or WORKLOADS:
            try:
                _compare(name, options.seeds, options.steps, results, device, progress)
            except (EdgebuildError, FileNotFoundError, ModuleNotFoundError) as error:
                progress.say(f"[yellow]{name} is left out: {error}")
    RESULTS.with_suffix(".md").write_text("\n".join(table(results.rows())) + "\n")


def _compare(
    name: str, seeds: int, steps: int, results: Results, device: Device, progress: Progress
) -> None:
    pieces = [
        (lesson, seed)
        for seed in range(seeds)
        for lesson in LESSONS
        if not results.has(name, lesson, seed)
    ]
    if not pieces:
        return
    workload = load_workload(str(HERE.parent / f"{name}.py"))
    case = open_case(workload, load_target("host"), Budget(), Cache(default_root()), progress)
    for lesson, seed in pieces:
        progress.say(f"{name}, {lesson}, seed {seed}")
        results.put(
            [
                {"workload": name, **row}
                for row in _rows(case, lesson, seed, steps, device, progress)
            ]
        )


def _rows(
    case: Case, lesson: str, seed: int, steps: int, device: Device, progress: Progress
) -> Iterator[Row]:
    """The scores of one student, in every precision that it is exported in."""
    begun = time.monotonic()
    settings, grid, precisions = LESSONS[lesson]
    network, student = _student(case, progress)
    if settings is not None:
        choice = Choice("distill", f"{steps} steps{grid}, seed {seed}")
        network = settings.apply(network, {NETWORK: choice}, case.lesson, Workplace(progress))
    whole = case.own_score(case.test)
    for precision in precisions:
        score = _score(case, network, precision, device)
        yield {
            "system": lesson,
            "seed": seed,
            "student": student,
            "precision": precision,
            "steps": steps if settings else 0,
            "score": score,
            "score_lost": (whole - score) * 100,
            "seconds": time.monotonic() - begun,
        }


def _student(case: Case, progress: Progress) -> tuple[nn.Module, str]:
    """The middling one of the students that are offered, as the search begins with."""
    method = catalog.method("student")
    _, runtime = next(exporters_of(case.target, [FORMAT]))
    offers = list(method.offers(case.lesson, runtime))
    offer = offers[len(offers) // 2]
    return reshaped_network(case, [(offer.part, offer.choice)], progress), offer.choice.option


def _score(case: Case, network: nn.Module, precision: Precision, device: Device) -> float:
    program = capture(network, case.workload.example)
    exporter, runtime = next(exporters_of(case.target, [FORMAT]))
    recipe = uniform(precision, program.sites, exporter, runtime)
    candidate = Candidate(recipe, program, case.calibration.folder, runtime)
    with tempfile.TemporaryDirectory() as scratch:
        # Outputs are kept under the folder's name, so it names the content.
        folder = Path(scratch) / digest(program.fingerprint, recipe.digest)
        folder.mkdir()
        artifact = exporter.export(candidate, folder)
        return case.score(outputs_of(case, artifact, case.test, device), case.test)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """What each kind of training is worth: points of score with it, less those without."""
    yield "# What training by the teacher is good for"
    yield ""
    yield (
        "Made by `make bench-search` from recovery.json: points of score lost on the test split, "
        "mean ± standard deviation over seeds, after as many steps with as without. It helps, or "
        "harms, where the difference is more than twice its standard error."
    )
    yield ""
    yield "| workload | what | steps | n | lost without | lost with | |"
    yield "|-|-|-|-|-|-|-|"
    for workload in dict.fromkeys(row["workload"] for row in rows):
        for what, without, with_it in PAIRS:
            pair = [_lost(rows, workload, *one) for one in (without, with_it)]
            if min(map(len, pair)) > 1:
                steps = max(row["steps"] for row in rows if row["workload"] == workload)
                cells = [workload, what, str(steps), str(len(pair[0])), *map(_spread, pair)]
                yield f"| {' | '.join(cells)} | {_judged(*pair)} |"


def _lost(rows: Sequence[Row], workload: str, lesson: str, precision: str) -> list[float]:
    return [
        row["score_lost"]
        for row in rows
        if (row["workload"], row["system"], row["precision"]) == (workload, lesson, precision)
    ]


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"


def _judged(without: Sequence[float], with_it: Sequence[float]) -> str:
    gained = statistics.fmean(without) - statistics.fmean(with_it)
    variances = [statistics.variance(values) / len(values) for values in (without, with_it)]
    error = sum(variances) ** 0.5
    if abs(gained) <= 2 * error:
        return "no difference"
    return "helps" if gained > 0 else "harms"


if __name__ == "__main__":
    main()
