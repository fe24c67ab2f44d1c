"""Compares the joint search with each family alone, with chance and with the runtimes' own INT8.

    python benchmarks/search/compare.py [WORKLOAD ...] [--systems SYSTEM ...] [--seeds 3]

Every workload, system and seed is a piece of its own, and stands in benchmarks/results/search.json
when it is done: run the command again and it goes on; delete the file to begin anew. Scores are of
the test split, which no search looks at; latencies of the chosen artifact and of the float network
are taken in turns.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from pieces import Results
from summary import write_summary
from systems import SYSTEMS, apart, is_seeded, rows_of, survey_once

from edgebuild import catalog
from edgebuild.cache import Cache, default_root
from edgebuild.inputs.target_file import load_target
from edgebuild.inputs.workload_file import load_workload
from edgebuild.methods._distill_memory import forget
from edgebuild.report.progress import shown
from edgebuild.report.terminal import stderr
from edgebuild.search.case import open_case
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.errors import EdgebuildError
from edgebuild.vocabulary.target import Budget

HERE = Path(__file__).parent
# The minutes of each search, surveys not counted: more where a step of training is longer.
MINUTES = {
    "vehicles": 3.0,
    "solar_cells": 3.0,
    "pneumonia": 1.0,
    "sentences": 0.5,
    "pedestrians": 2.5,
}
# The point at which speeds are compared; half of it where many samples leave few doubts, since test
# data think less of what others chose.
DROP, DROPS = "1 %", {"vehicles": "0.5 %"}
RESULTS = HERE.parent / "results" / "search.json"


def main() -> None:
    options = _options()
    results = Results(RESULTS)
    with shown(stderr()) as progress:
        for name in options.workloads or MINUTES:
            try:
                _compare(name, options, results, progress)
            except (EdgebuildError, FileNotFoundError, ModuleNotFoundError) as error:
                progress.say(f"[yellow]{name} is left out: {error}")
    write_summary(RESULTS)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(MINUTES))
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
    # Apart from the user's own, where trained networks may lie already.
    cache = Cache(default_root() / "comparison" / "asked")
    budget = Budget.parse(accuracy_drop=DROPS.get(name, DROP))
    with catalog.device("local") as device:
        case = open_case(workload, load_target("host"), budget, cache, progress)
        # What all searches ask is asked before any clock runs.
        survey_once(case, device, progress)
        for system, seed in pieces:
            progress.say(f"{name}, {system}, seed {seed}")
            tried = _tried(results, name, seed)
            try:
                forget(case.lesson.network)
                with apart(cache) as own:
                    asked = replace(case, cache=own)
                    rows = rows_of(asked, system, seed, MINUTES[name], tried, device, progress)
            except EdgebuildError as error:
                progress.say(f"[yellow]{name}, {system} is left out: {error}")
            else:
                results.put([{"workload": name, **row} for row in rows])


def _tried(results: Results, workload: str, seed: int) -> int:
    """How many candidates the joint search has measured."""
    piece = (workload, "joint", seed)
    rows = [r for r in results.rows() if (r["workload"], r["system"], r["seed"]) == piece]
    return sum(row["evaluations"] for row in rows)


if __name__ == "__main__":
    main()
