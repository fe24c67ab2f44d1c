"""The rows of llm.json as tables for a reader."""

from __future__ import annotations

import json
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
        ("bytes", "bytes", ",d"),
        ("KL, nats", "kl", ".4f"),
        ("same first token", "top1", ".1%"),
        ("perplexity", "perplexity", ".4g"),
        ("of the floats", "float_perplexity", ".4g"),
    ),
    "decode": (
        ("bytes", "bytes", ",d"),
        ("token/s", "tokens_per_s", ".4g"),
        ("prompt token/s", "prefill_tokens_per_s", ".4g"),
        ("own memory, MB", "anon_mb", ".0f"),
        ("mapped, MB", "mapped_mb", ".0f"),
        ("share of the bandwidth", "bandwidth_share", ".0%"),
    ),
}


def write_table(results: Path) -> None:
    """Writes the .md beside the .json."""
    found = json.loads(results.read_text())
    machine = found["machine"]
    lines = [f"Measured on {machine['processor']}, {machine['cores']} cores, by `make bench-llm`."]
    for task, columns in COLUMNS.items():
        rows = [row for row in found["rows"] if row["task"] == task]
        if rows:
            titles = ["system", *(title for title, _, _ in columns)]
            lines += ["", f"## {task}", "", _line(titles), _line(["-"] * len(titles))]
            lines += [_line(_cells(row, columns)) for row in rows]
    results.with_suffix(".md").write_text("\n".join(lines) + "\n")


def _cells(row: Row, columns: Sequence[tuple[str, str, str]]) -> list[str]:
    """What failed has its reason instead of figures."""
    if reason := row.get("error"):
        said = f"failed: {reason}".replace("|", "\\|")
        return [row["system"], said, *[""] * (len(columns) - 1)]
    return [row["system"], *(_cell(row, column) for column in columns)]


def _cell(row: Row, column: tuple[str, str, str]) -> str:
    value = row.get(column[1])
    return "" if value is None else format(value, column[2])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
