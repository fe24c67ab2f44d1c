"""Targets are shown with their budgets, and one of them with the source of every fact."""

from __future__ import annotations

import json

import pytest

from edgebuild.inputs.target_file import load_target, target_names
from edgebuild.report import targets as report

NAMES = target_names()


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")


def test_all_targets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    report.show_all([load_target(name) for name in NAMES])
    text = capsys.readouterr().out
    for name in NAMES:
        assert name in text


@pytest.mark.parametrize("name", NAMES)
def test_every_fact_of_a_target_has_a_source_or_is_unknown(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = load_target(name)
    report.show_one(target)
    text = capsys.readouterr().out
    assert target.title in text
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    facts = {row[0]: row[1:] for row in rows if len(row) == 3}
    for fact in ("memory.ram", "memory.bandwidth", "compute.fp32", "compute.int8"):
        assert facts[fact][0]
        assert facts[fact][1] != "–"
    for runtime in target.runtimes:
        assert any(fact.startswith(f"runtime.{runtime.name}") for fact in facts)


def test_targets_are_plain_json() -> None:
    found = json.loads(json.dumps(report.as_json([load_target(name) for name in NAMES])))
    assert [each["name"] for each in found] == NAMES
    assert all(each["memory"]["ram"] > 0 for each in found)
