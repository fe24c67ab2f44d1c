"""Makes the table and the plot of the comparison's results: search.md and search.svg."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from edgebuild.search.learn import FLOOR

Row = dict[str, Any]

SINGLE, PAIR = ("quantize", "prune", "factorize", "distill"), "prune+distill"
# The points of score that may be lost where speeds are compared.
POINTS = 1.0
HEADER = (
    "| workload | system | runtime | n | points lost | × faster | MB | hypervolume | tried | s |"
)


def write_summary(results: Path) -> None:
    """Writes the table and the plot beside the results."""
    rows = json.loads(results.read_text())["rows"]
    # In whichever order they were run.
    rows = [row for _, group in _groups(rows, "workload") for row in group]
    parts = [_table(rows), _goals(rows), _whole_int8(rows), _predictions(rows)]
    results.with_suffix(".md").write_text("\n".join(line for part in parts for line in part) + "\n")
    _plot(rows, results.with_suffix(".svg"))


def _table(rows: Sequence[Row]) -> Iterator[str]:
    yield "# The joint search against its parts, chance, and the runtimes' own INT8"
    yield ""
    yield (
        "Made by `make bench-search` from search.json: mean ± standard deviation over seeds. Score "
        "is of the test split; latency is that of the float network in the same runtime over this "
        "one's, timed in turns; hypervolume is how often the frontier "
        "halves the latency, on average over ten points of score."
    )
    yield ""
    for (machine,), group in _groups(rows, "machine"):
        workloads = dict.fromkeys(row["workload"] for row in group)
        yield f"- {', '.join(workloads)}: measured on {machine}"
    yield ""
    yield HEADER
    yield "|-|-|-|-|-|-|-|-|-|-|"
    for (workload, system, runtime), group in _groups(rows, "workload", "system", "runtime"):
        cells = [
            *(workload, system, runtime, str(len(group))),
            _spread(row["score_lost"] for row in group),
            _spread(row["latency_ratio"] for row in group),
            _spread(row["bytes"] / 1e6 for row in group),
            _spread(row["hypervolume"] for row in group if row["hypervolume"] is not None),
            _spread((row["evaluations"] for row in group), digits=0),
            _spread((row["seconds"] for row in group), digits=0),
        ]
        yield f"| {' | '.join(cells)} |"
    yield ""


def _goals(rows: Sequence[Row]) -> Iterator[str]:
    """What the joint search is measured by, workload by workload."""
    yield "## Against the goals"
    yield ""
    yield (
        f"| workload | hypervolume over the best single family's | over {PAIR} | over chance | "
        f"× faster than float, at ≤ {POINTS:g} point lost "
        "| over the best INT8 of the whole network |"
    )
    yield "|-|-|-|-|-|-|"
    for (workload,), group in _groups(rows, "workload"):
        joint = _mean(group, "hypervolume", "joint")
        single = max((_mean(group, "hypervolume", name) for name in SINGLE), default=0.0)
        kept = [
            row["latency_ratio"]
            for row in group
            if row["system"] == "joint" and row["score_lost"] <= POINTS
        ]
        tried = sum(row["system"] == "joint" for row in group)
        whole = [
            row["latency_ratio"]
            for row in group
            if row["system"] in ("runtime-int8", "quantize") and row["score_lost"] <= POINTS
        ]
        speed, beside_int8 = "–", "–"
        if kept:
            fastest = statistics.fmean(kept)
            speed, beside_int8 = f"{fastest:.2f}", _ratio(fastest, max(whole, default=1.0))
        cells = [
            workload,
            _ratio(joint, single),
            _ratio(joint, _mean(group, "hypervolume", PAIR)),
            _ratio(joint, _mean(group, "hypervolume", "random")),
            f"{speed} ({len(kept)} of {tried} seeds)",
            beside_int8,
        ]
        yield f"| {' | '.join(cells)} |"
    yield ""


def _whole_int8(rows: Sequence[Row]) -> Iterator[str]:
    """How INT8 of the unchanged network scores, by how it is rounded: nearest first, then finer."""
    yield "## INT8 of the whole network"
    yield ""
    yield "| workload | format | rounded | layers | score |"
    yield "|-|-|-|-|-|"
    for row in rows:
        for one in row.get("whole_int8", ()) if row["system"] == "quantize" else ():
            cells = [row["workload"], one["format"], one["recipe"], one["layers"]]
            yield f"| {' | '.join(cells)} | {one['score']:.4f} |"
    yield ""


def _predictions(rows: Sequence[Row]) -> Iterator[str]:
    yield "## What the planner expected, and what was measured"
    yield ""
    yield "Each candidate is expected by what was learned of all others of its search."
    yield ""
    yield (
        "| workload | candidates | latency: rank correlation | median error "
        "| loss: rank correlation | median factor |"
    )
    yield "|-|-|-|-|-|-|"
    for (workload,), group in _groups(rows, "workload"):
        planned = _planned(group)
        if len(planned) < 3:
            continue
        expected, measured, expected_loss, measured_loss = np.array(
            [[one[name] for one in planned] for name in _PLANNED]
        )
        logs = [np.log(np.maximum(losses, FLOOR)) for losses in (expected_loss, measured_loss)]
        factor = np.exp(np.abs(logs[0] - logs[1]))
        cells = [
            workload,
            str(len(planned)),
            f"{spearmanr(expected, measured).statistic:.2f}",
            f"{100 * float(np.median(np.abs(expected / measured - 1))):.0f} %",
            f"{spearmanr(expected_loss, measured_loss).statistic:.2f}",
            f"{float(np.median(factor)):.1f}",
        ]
        yield f"| {' | '.join(cells)} |"


_PLANNED = ("planned_latency", "measured_latency", "planned_loss", "measured_loss")


def _planned(rows: Iterable[Row]) -> list[Row]:
    """Every candidate that was planned and measured, of all systems, each once."""
    found = [one for row in rows for one in row.get("planned", ())]
    return list(
        {(one["recipe"], one["format"], one["measured_loss"]): one for one in found}.values()
    )


def _plot(rows: Sequence[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    # The same results draw the same file.
    matplotlib.rcParams["svg.hashsalt"] = "edgebuild"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 5))
    for axis, (expected, measured, title) in zip(
        axes,
        (
            ("planned_latency", "measured_latency", "latency, seconds"),
            ("planned_loss", "measured_loss", "loss: KL of the outputs, nats"),
        ),
        strict=True,
    ):
        for (workload,), group in _groups(rows, "workload"):
            planned = _planned(group)
            axis.loglog(
                [one[expected] for one in planned],
                [max(one[measured], 1e-7) for one in planned],
                *("o",),
                markersize=3,
                label=workload,
            )
        low, high = axis.get_xlim()
        axis.plot([low, high], [low, high], color="gray", linewidth=0.8)
        axis.set(title=title, xlabel="planned", ylabel="measured")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def _groups(rows: Sequence[Row], *names: str) -> Iterator[tuple[tuple[Any, ...], list[Row]]]:
    keys = dict.fromkeys(tuple(row[name] for name in names) for row in rows)
    for key in keys:
        yield key, [row for row in rows if tuple(row[name] for name in names) == key]


def _mean(rows: Iterable[Row], name: str, system: str) -> float:
    values = [row[name] for row in rows if row["system"] == system and row[name] is not None]
    return statistics.fmean(values) if values else 0.0


def _spread(values: Iterable[float], digits: int = 2) -> str:
    found = list(values)
    if not found:
        return ""
    spread = f" ± {statistics.stdev(found):.{digits}f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):.{digits}f}{spread}"


def _ratio(value: float, other: float) -> str:
    return f"{value / other:.2f}" if other > 0 else "–"
