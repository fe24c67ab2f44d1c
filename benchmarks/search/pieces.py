"""Keeps what a comparison has done so far: a row for each piece, on one kind of machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgebuild.cache import LIBRARIES
from edgebuild.inputs.target_file import load_target
from edgebuild.runner import machine

Row = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """All rows so far, in one file that is whole at any time.

    Only rows of this machine count as done: what is compared must have run on one.
    """

    path: Path

    def has(self, workload: str, system: str, seed: int) -> bool:
        done = {(r["workload"], r["system"], r["seed"], r["machine"]) for r in self.rows()}
        return (workload, system, seed, _machine()) in done

    def put(self, rows: list[Row]) -> None:
        """Adds the rows of one piece; those of the same piece on another machine go."""
        here = [{**row, "machine": _machine()} for row in rows]
        pieces = {(row["workload"], row["system"], row["seed"]) for row in rows}
        others = [r for r in self.rows() if (r["workload"], r["system"], r["seed"]) not in pieces]
        result = {
            "made_by": "make bench-search",
            "versions": {package: importlib.metadata.version(package) for package in LIBRARIES},
            "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
            "rows": [*others, *here],
        }
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(result, indent=1) + "\n")
        os.replace(part, self.path)

    def rows(self) -> list[Row]:
        return json.loads(self.path.read_text())["rows"] if self.path.exists() else []


def _machine() -> str:
    """The processor's name and instruction set."""
    return f"{machine()}, {load_target('host').compute.isa}"
