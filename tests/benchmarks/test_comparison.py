"""The comparison of systems keeps its pieces, and sums them up as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pieces
import pytest
from pieces import Results
from summary import write_summary

Row = dict[str, Any]
PLANNED = [
    {
        "recipe": f"recipe {number}",
        "format": "onnx",
        "planned_latency": 1e-4 * number,
        "measured_latency": 2e-4 * number,
        "planned_loss": 0.01 * number,
        "measured_loss": 0.02 * number,
    }
    for number in range(1, 6)
]


def row(system: str, seed: int = 0, ratio: float = 2.0, **more: Any) -> Row:
    return {
        "workload": "vehicles",
        "system": system,
        "seed": seed,
        "runtime": "onnxruntime",
        "score": 0.98,
        "score_lost": 0.5,
        "latency_ratio": ratio,
        "bytes": 250_000,
        "hypervolume": None,
        "evaluations": 1,
        "seconds": 3.0,
        "machine": "a processor",
        **more,
    }


def summary(path: Path, rows: list[Row]) -> str:
    path.write_text(json.dumps({"rows": rows}))
    write_summary(path)
    return path.with_suffix(".md").read_text()


def test_seeds_are_summed_up_as_mean_and_spread(tmp_path: Path) -> None:
    seeds = [
        row("joint", seed, ratio, hypervolume=0.8, planned=PLANNED)
        for seed, ratio in enumerate((9.0, 10.0, 11.0))
    ]
    text = summary(tmp_path / "search.json", [row("float", ratio=1.0), *seeds])
    assert "| vehicles | joint | onnxruntime | 3 | 0.50 ± 0.00 | 10.00 ± 1.00 |" in text


def test_each_machine_is_named_with_what_was_measured_on_it(tmp_path: Path) -> None:
    rows = [row("joint"), row("float", workload="digits"), row("float", machine="another")]
    text = summary(tmp_path / "search.json", rows)
    assert "- vehicles, digits: measured on a processor\n- vehicles: measured on another\n" in text


def test_the_joint_search_is_held_against_the_best_of_the_others(tmp_path: Path) -> None:
    rows = [
        row("joint", ratio=12.0, hypervolume=0.9),
        row("prune", ratio=6.0, hypervolume=0.6),
        row("quantize", ratio=3.0, hypervolume=0.45),
        row("prune+distill", ratio=9.0, hypervolume=0.75),
        row("random", hypervolume=0.3),
        row("runtime-int8", ratio=4.0),
    ]
    text = summary(tmp_path / "search.json", rows)
    assert "| vehicles | 1.50 | 1.20 | 3.00 | 12.00 (1 of 1 seeds) | 3.00 |" in text


def test_a_seed_that_lost_too_much_counts_for_no_speed(tmp_path: Path) -> None:
    rows = [row("joint", 0, 12.0, hypervolume=0.9), row("joint", 1, 50.0, score_lost=1.5)]
    assert "12.00 (1 of 2 seeds)" in summary(tmp_path / "search.json", rows)


def test_plans_are_held_against_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "search.json"
    text = summary(path, [row("joint", hypervolume=0.9, planned=PLANNED)])
    assert "| vehicles | 5 | 1.00 | 50 % | 1.00 | 2.0 |" in text
    drawn = path.with_suffix(".svg").read_text()
    assert "<svg" in drawn
    write_summary(path)
    assert path.with_suffix(".svg").read_text() == drawn


def test_whole_int8_is_listed_by_how_it_is_rounded(tmp_path: Path) -> None:
    whole = {"recipe": "int8-static", "layers": "5 int8-static", "format": "onnx", "score": 0.94}
    text = summary(tmp_path / "search.json", [row("quantize", whole_int8=[whole])])
    assert "| vehicles | onnx | int8-static | 5 int8-static | 0.9400 |" in text


def test_a_piece_that_is_done_is_done_until_the_machine_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Results(tmp_path / "search.json")
    assert not results.has("vehicles", "joint", 0)
    results.put([row("joint", 0), row("joint", 0, ratio=3.0)])
    results.put([row("joint", 1)])
    assert results.has("vehicles", "joint", 0)
    assert not results.has("vehicles", "joint", 2)
    monkeypatch.setattr(pieces, "_machine", lambda: "another")
    assert not results.has("vehicles", "joint", 0)
    results.put([row("joint", 0, ratio=4.0)])
    kept = json.loads(results.path.read_text())["rows"]
    assert [(one["seed"], one["latency_ratio"]) for one in kept] == [(1, 2.0), (0, 4.0)]
