"""The rows of llm.json as tables for a reader; what several seeds gave is one line."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
COLUMNS: Mapping[str, Sequence[tuple[str, str, str]]] = {
    "convert": (
        ("model", "model", ""),
        ("bytes made", "bytes", ",d"),
        ("GB/s", "gb_per_s", ".2f"),
        ("GB per CPU second", "gb_per_cpu_s", ".2f"),
        ("peak RSS, MB", "peak_rss_mb", ".0f"),
    ),
    "quality": (
        ("model", "model", ""),
        ("bytes", "bytes", ",d"),
        ("KL, nats", "kl", ".3g"),
        ("same first token", "top1", ".1%"),
        ("perplexity", "perplexity", ".4g"),
        ("of the floats", "float_perplexity", ".4g"),
    ),
    "decode": (
        ("model", "model", ""),
        ("bytes", "bytes", ",d"),
        ("token/s", "tokens_per_s", ".4g"),
        ("prompt token/s", "prefill_tokens_per_s", ".4g"),
        ("own memory, MB", "anon_mb", ".0f"),
        ("mapped, MB", "mapped_mb", ".0f"),
        ("share of the bandwidth", "bandwidth_share", ".0%"),
    ),
    "shrink": (
        ("limit", "model", ""),
        ("parameters", "parameters", ",.0f"),
        ("bytes", "bytes", ",.0f"),
        ("KL, nats", "kl", ".4f"),
        ("same first token", "top1", ".1%"),
        ("perplexity", "perplexity", ".4g"),
        ("of the floats", "float_perplexity", ".4g"),
        ("seconds", "seconds", ".0f"),
    ),
}


def write_table(results: Path) -> None:
    """Writes the .md beside the .json."""
    found = json.loads(results.read_text())
    lines = ["Made by `make bench-llm` from llm.json."]
    for task, columns in COLUMNS.items():
        rows = [row for row in found["rows"] if row["task"] == task]
        if rows:
            titles = ["system", *(title for title, _, _ in columns)]
            seeds = len({row["seed"] for row in rows if "seed" in row})
            spread = f"Mean ± standard deviation of {seeds} seeds.\n" if seeds > 1 else ""
            machines = " and on ".join(dict.fromkeys(row["machine"] for row in rows))
            lines += ["", f"## {task}", "", f"Measured on {machines}.", "", *filter(None, [spread])]
            lines += [_line(titles), _line(["-"] * len(titles))]
            lines += [_line(_cells(some, columns)) for some in _alike(rows)]
    results.with_suffix(".md").write_text("\n".join(lines) + "\n")


def _alike(rows: Sequence[Row]) -> list[list[Row]]:
    """Those of one system on one model, in the order in which they come."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["system"], row["model"]), []).append(row)
    return list(found.values())


def _cell(rows: Sequence[Row], column: tuple[str, str, str]) -> str:
    """A value; of several that differ the mean and their spread."""
    values = [row[column[1]] for row in rows if row.get(column[1]) is not None]
    if not values:
        return ""
    if len(set(values)) == 1:
        return format(values[0], column[2])
    mean, spread = statistics.mean(values), statistics.stdev(values)
    return f"{mean:{column[2]}} ± {spread:{column[2]}}"


def _cells(rows: Sequence[Row], columns: Sequence[tuple[str, str, str]]) -> list[str]:
    """What failed has its reason instead of figures."""
    system = rows[0]["system"]
    if reason := next((row["error"] for row in rows if row.get("error")), ""):
        said = f"failed: {reason}".replace("|", "\\|")
        told = [_cell(rows, column) for column in columns if column[1] == "model"]
        return [system, *told, said, *[""] * (len(columns) - len(told) - 1)]
    return [system, *(_cell(rows, column) for column in columns)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
