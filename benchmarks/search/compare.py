"""Compares the joint search with each family alone, with chance and with the runtimes' own INT8.

    python benchmarks/search/compare.py [WORKLOAD ...] [--systems SYSTEM ...] [--seeds 3]

Every workload, system and seed is a piece of its own, and stands in benchmarks/results/search.json
when it is done: run the command again and it goes on; delete the file to begin anew. Scores are of
the test split, which no search looks at; latencies of the chosen artifact and of the float network
are taken in turns.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from summary import write_summary
from systems import SYSTEMS, Row, is_seeded, rows_of, survey_once

from edgebuild import catalog
from edgebuild.cache import LIBRARIES, Cache, default_root
from edgebuild.inputs.target_file import load_target
from edgebuild.inputs.workload_file import load_workload
from edgebuild.report.terminal import Bars, stderr
from edgebuild.search.case import open_case
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.errors import EdgebuildError
from edgebuild.vocabulary.target import Budget

HERE = Path(__file__).parent
# The minutes of each search, surveys not counted: as many as a step of training is long.
WORKLOADS = {
    "vehicles": 1.5,
    "solar_cells": 2.5,
    "pneumonia": 0.5,
    "sentences": 1.0,
    "pedestrians": 0.75,
}
# On validation data; searches that may lose a whole point there lose more on the test split.
DROP = "0.5 %"
RESULTS = HERE.parent / "results" / "search.json"


def main() -> None:
    options = _options()
    results = Results(RESULTS)
    with Bars(stderr()) as progress:
        for name in options.workloads or WORKLOADS:
            try:
                _compare(name, options, results, progress)
            except (EdgebuildError, FileNotFoundError, ModuleNotFoundError) as error:
                progress.say(f"[yellow]{name} is left out: {error}")
    write_summary(RESULTS)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--systems", nargs="*", default=SYSTEMS, help="only these")
    parser.add_argument("--seeds", type=int, default=3)
    return parser.parse_args()


def _compare(name: str, options: argparse.Namespace, results: Results, progress: Progress) -> None:
    pieces = [
        (system, seed)
        for seed in range(options.seeds)
        for system in options.systems
        if seed == 0 or is_seeded(system)
        if not results.has(name, system, seed)
    ]
    if not pieces:
        return
    workload = load_workload(str(HERE.parent / f"{name}.py"))
    cache, budget = Cache(default_root()), Budget.parse(accuracy_drop=DROP)
    with catalog.device("local") as device:
        case = open_case(workload, load_target("host"), budget, cache, progress)
        # What all searches ask is asked before any clock runs.
        survey_once(case, device, progress)
        for system, seed in pieces:
            progress.say(f"{name}, {system}, seed {seed}")
            try:
                rows = rows_of(case, system, seed, WORKLOADS[name], device, progress)
            except EdgebuildError as error:
                progress.say(f"[yellow]{name}, {system} is left out: {error}")
            else:
                results.put([{"workload": name, **row} for row in rows])


@dataclass(frozen=True)
class Results:
    """All rows so far, in one file that is whole at any time.

    Only rows of this machine count as done: what is compared must have run on one.
    """

    path: Path

    def has(self, workload: str, system: str, seed: int) -> bool:
        done = {(r["workload"], r["system"], r["seed"], r["machine"]) for r in self._rows()}
        return (workload, system, seed, _machine()) in done

    def put(self, rows: list[Row]) -> None:
        """Adds the rows of one piece; those of the same piece on another machine go."""
        here = [{**row, "machine": _machine()} for row in rows]
        pieces = {(row["workload"], row["system"], row["seed"]) for row in rows}
        others = [r for r in self._rows() if (r["workload"], r["system"], r["seed"]) not in pieces]
        result = {
            "made_by": "make bench-search",
            "versions": {package: importlib.metadata.version(package) for package in LIBRARIES},
            "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
            "rows": [*others, *here],
        }
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(result, indent=1) + "\n")
        os.replace(part, self.path)

    def _rows(self) -> list[Row]:
        return json.loads(self.path.read_text())["rows"] if self.path.exists() else []


def _machine() -> str:
    """The processor's name and instruction set."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {load_target('host').compute.isa}"


if __name__ == "__main__":
    main()
