"""The report says what was judged and tried, and claims no more than the manifest holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgebuild.bundles.manifest import Bundle
from edgebuild.report import words
from edgebuild.report.markdown import render
from edgebuild.vocabulary.artifact import Census
from edgebuild.vocabulary.measurement import Evidence
from edgebuild.vocabulary.recipe import Recipe
from edgebuild.vocabulary.trial import Trial
from edgebuild.vocabulary.verdict import Status


def rows(report: str, heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its head."""
    section = report.split(f"## {heading}")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_report_in_the_bundle_is_the_one_of_its_manifest(built: Bundle) -> None:
    # The files' digests are known only after the report is written, and are no part of it.
    assert (built.path / "report.md").read_text() == render(built.manifest)


def test_it_opens_with_the_verdict(built: Bundle) -> None:
    report = render(built.manifest)
    assert report.startswith("# small on robot-raspberry-pi-5\n")
    assert words.verdict(built.manifest) in report


def test_every_budget_line_stands_in_it_with_its_status(built: Bundle) -> None:
    found = rows(render(built.manifest), "Budget")
    assert found == [list(words.line(line)) for line in built.verdict.lines]
    stated = {"latency (p99)", "peak memory", "storage", "power above idle (at 2 /s)"}
    stated.add("accuracy drop (agreement with the original)")
    assert {title for title, *_ in found} == stated


def test_every_recipe_that_was_tried_stands_in_it_best_first(built: Bundle) -> None:
    found = rows(render(built.manifest), "What was tried")
    tried = {(trial.recipe.format, trial.recipe.name) for trial in built.manifest.tried}
    assert {(row[0], row[1]) for row in found} == tried
    assert len(found) == len(built.manifest.tried) == 3
    scores = [row[2] for row in found]
    assert scores == sorted(scores, reverse=True)


def test_layers_in_another_precision_stand_in_it_with_the_reason(built: Bundle) -> None:
    sites = [site for site, _ in built.manifest.recipe.chosen][:2]
    recipe = replace(built.manifest.recipe, declined=tuple((site, "too dear") for site in sites))
    tried = tuple(
        replace(trial, recipe=recipe) if trial.recipe == built.manifest.recipe else trial
        for trial in built.manifest.tried
    )
    found = rows(render(replace(built.manifest, recipe=recipe, tried=tried)), "Artifact")
    assert ["other precision", f"{sites[0].path}, {sites[1].path}: too dear"] in found


def test_nothing_predicted_is_called_measured(built: Bundle) -> None:
    """On another machine than the target all but the file's size is an estimate."""
    lines = {words.title(line): line for line in built.verdict.lines}
    for title, _, shown, status, evidence in rows(render(built.manifest), "Budget"):
        figure = lines[title].figure
        assert figure is not None
        if figure.evidence is Evidence.PREDICTED:
            assert shown.startswith("~")
            assert status != Status.MET
            assert not evidence.startswith("measured")
            if status == Status.PREDICTED:
                assert evidence.startswith("predicted for robot-raspberry-pi-5")
    statuses = {title: line.status for title, line in lines.items()}
    assert statuses.pop("storage") is Status.MET
    assert statuses.pop("power above idle (at 2 /s)") is Status.UNKNOWN
    assert set(statuses.values()) == {Status.PREDICTED}


def test_predicted_figures_of_trials_are_marked(built: Bundle) -> None:
    for row in rows(render(built.manifest), "What was tried"):
        p99, memory = row[5], row[6]
        assert p99.startswith("~")
        assert memory.startswith("~")


def test_the_file_is_named_with_its_digest_and_its_oldest_runtime(built: Bundle) -> None:
    report, artifact = render(built.manifest), built.manifest.artifact
    assert f"`{artifact.file}`" in report
    assert artifact.sha256 in report
    for package, version in artifact.minimum_runtime.items():
        assert f"needs at least {package} {version}" in report


def test_the_machine_that_measured_is_named(built: Bundle) -> None:
    assert f"## Measured on {built.manifest.measurement.machine}\n" in render(built.manifest)


def test_a_run_whose_halves_disagree_is_called_inconclusive(built: Bundle) -> None:
    steady = replace(built.manifest.measurement, latencies=(0.001,) * 1000)
    drifting = replace(steady, latencies=(0.001,) * 500 + (0.002,) * 500)
    assert "INCONCLUSIVE" not in render(replace(built.manifest, measurement=steady))
    assert "**INCONCLUSIVE**" in render(replace(built.manifest, measurement=drifting))


def test_a_percentile_that_too_few_runs_claim_is_not_claimed(built: Bundle) -> None:
    short = replace(built.manifest.measurement, latencies=(0.001,) * 100)
    found = rows(render(replace(built.manifest, measurement=short)), f"Measured on {short.machine}")
    bounds = {row[0]: row[3] for row in found if row[0].startswith("p") and row[0][1:].isdigit()}
    assert bounds == {"p50": "1 ms", "p90": "1 ms", "p99": "too few runs"}


def test_every_float_kernel_stands_in_it_with_its_reason(built: Bundle) -> None:
    fallbacks = built.manifest.census.fallbacks
    without = replace(built.manifest, census=Census(built.manifest.census.runs))
    assert "Everything" in render(without) or "No layer" in render(without)
    if fallbacks:
        found = rows(render(built.manifest), "What runs in float, and why")
        assert [row[2] for row in found] == [fallback.reason for fallback in fallbacks]


@pytest.mark.parametrize("failure", ["one\ntwo | three", "a | b", "plain"])
def test_a_failure_stands_in_one_row(failure: str, built: Bundle) -> None:
    failed = Trial(Recipe("fp16", "onnx", ()), failure=failure)
    manifest = replace(built.manifest, tried=(*built.manifest.tried, failed))
    report = render(manifest)
    assert f"failed: {words.cell(failure)} |" in report
    assert len(rows(report, "What was tried")) == 4
