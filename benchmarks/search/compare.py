"""Compares the joint search with each family alone, with chance and with the runtimes' own INT8.

    python benchmarks/search/compare.py [WORKLOAD ...] [--seeds 3] [--minutes 2] [--out FOLDER]

Every workload, system and seed is a piece of its own, written when it is done: run the command
again and it goes on. Scores are of the test split, which no search looks at; latencies of the
chosen artifact and of the float network are taken in turns.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from summary import write_summary
from systems import SYSTEMS, Row, is_seeded, rows_of

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
WORKLOADS = ("vehicles", "solar_cells", "sentences", "pneumonia", "pedestrians")
DROP = "1 %"
RESULTS = HERE.parent / "results" / "search.json"


def main() -> None:
    options = _options()
    pieces = Path(options.out)
    pieces.mkdir(parents=True, exist_ok=True)
    console = stderr()
    with Bars(console) as progress:
        for name in options.workloads or WORKLOADS:
            try:
                _compare(name, options, pieces, progress)
            except (EdgebuildError, FileNotFoundError, ModuleNotFoundError) as error:
                progress.say(f"[yellow]{name} is left out: {error}")
    _write_results(pieces)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--systems", nargs="*", default=[], help="only these")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=2.0, help="of each search")
    parser.add_argument("--out", default="dist/search", help="where the pieces go")
    return parser.parse_args()


def _compare(name: str, options: argparse.Namespace, folder: Path, progress: Progress) -> None:
    workload = load_workload(str(HERE.parent / f"{name}.py"))
    cache, budget = Cache(default_root()), Budget.parse(accuracy_drop=DROP)
    with catalog.device("local") as device:
        case = open_case(workload, load_target("host"), budget, cache, progress)
        pieces = Pieces(folder, name)
        wanted = [system for system in SYSTEMS if system in (options.systems or SYSTEMS)]
        for system in wanted:
            for seed in range(options.seeds if is_seeded(system) else 1):
                progress.say(f"{name}, {system}, seed {seed}")
                if pieces.has(system, seed):
                    continue
                try:
                    rows = rows_of(case, system, seed, options.minutes, device, progress)
                except EdgebuildError as error:
                    progress.say(f"[yellow]{name}, {system} is left out: {error}")
                else:
                    pieces.write(system, seed, rows)


@dataclass(frozen=True)
class Pieces:
    """A file of rows for each workload, system and seed; whole or not there at all."""

    folder: Path
    workload: str

    def has(self, system: str, seed: int) -> bool:
        return self._path(system, seed).exists()

    def write(self, system: str, seed: int, rows: list[Row]) -> None:
        path = self._path(system, seed)
        part = path.with_suffix(".part")
        part.write_text(json.dumps([{"workload": self.workload, **row} for row in rows]))
        os.replace(part, path)

    def _path(self, system: str, seed: int) -> Path:
        return self.folder / f"{self.workload}-{system}-{seed}.json"


def _write_results(folder: Path) -> None:
    """All pieces as one file, with what they were made by."""
    rows = [row for path in sorted(folder.glob("*.json")) for row in json.loads(path.read_text())]
    result = {
        "made_by": "python benchmarks/search/compare.py " + " ".join(sys.argv[1:]),
        "versions": {package: importlib.metadata.version(package) for package in LIBRARIES},
        "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    write_summary(RESULTS)


if __name__ == "__main__":
    main()
