"""What training is worth is told by seeds that were trained with it and without."""

from __future__ import annotations

from typing import Any

from recovery import table


def row(system: str, precision: str, seed: int, lost: float) -> dict[str, Any]:
    return {
        **{"workload": "vehicles", "system": system, "precision": precision, "seed": seed},
        **{"steps": 200, "score_lost": lost},
    }


def judged(without: tuple[float, ...], with_it: tuple[float, ...]) -> str:
    rows = [row("labels", "fp32", seed, lost) for seed, lost in enumerate(without)]
    rows += [row("distilled", "fp32", seed, lost) for seed, lost in enumerate(with_it)]
    return list(table(rows))[-1]


def test_what_is_clearly_better_helps() -> None:
    line = judged((1.9, 2.0, 2.1), (0.9, 1.0, 1.1))
    assert line.startswith("| vehicles | distillation | 200 | 3 | 2.00 ± 0.10 | 1.00 ± 0.10 |")
    assert line.endswith("helps |")


def test_what_is_clearly_worse_harms() -> None:
    assert judged((0.9, 1.0, 1.1), (1.9, 2.0, 2.1)).endswith("harms |")


def test_what_lies_within_the_spread_makes_no_difference() -> None:
    assert judged((0.5, 1.0, 1.5), (0.4, 0.9, 1.4)).endswith("no difference |")


def test_one_seed_tells_nothing() -> None:
    assert "distillation" not in judged((1.0,), (2.0,))
