"""The terminal shows what was built, whatever brackets its names hold."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from edgebuild.bundles.bench import Benched
from edgebuild.bundles.manifest import Bundle
from edgebuild.bundles.verify import Verification
from edgebuild.report import terminal, words
from edgebuild.vocabulary.artifact import Census, Fallback
from edgebuild.vocabulary.measurement import Sustained, Window
from edgebuild.vocabulary.precision import LayerKind
from edgebuild.vocabulary.program import Site
from edgebuild.vocabulary.recipe import Recipe
from edgebuild.vocabulary.trial import Trial
from edgebuild.vocabulary.units import Hertz, Seconds

BRACKETS = "[/bold] and [red]"


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=240)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_bundle_is_shown_with_every_budget_line_and_its_verdict(
    built: Bundle, console: Console
) -> None:
    terminal.show_bundle(console, built)
    text = shown(console)
    assert words.verdict(built.manifest) in text
    for line in built.verdict.lines:
        for cell in words.line(line):
            assert cell in text
    assert str(built.path) in text


def test_layers_in_another_precision_are_named_with_the_reason(
    built: Bundle, console: Console
) -> None:
    sites = tuple(Site(f"layer.{number}", LayerKind.LINEAR) for number in range(6))
    declined = tuple((site, "XNNPACK has no four-bit convolution: int8-static") for site in sites)
    recipe = replace(built.manifest.recipe, declined=declined)
    terminal.show_bundle(console, replace(built, manifest=replace(built.manifest, recipe=recipe)))
    said = " ".join(shown(console).split())
    assert "other precision" in said
    assert (
        "layer.0, layer.1, layer.2, layer.3 and 2 more: XNNPACK has no four-bit convolution: "
        "int8-static"
    ) in said


def test_latencies_of_this_machine_are_said_to_be_its_own(built: Bundle, console: Console) -> None:
    terminal.show_bundle(console, built)
    (line,) = [line for line in shown(console).splitlines() if "latency p50" in line]
    assert "measured on host" in line


def test_a_score_says_that_it_is_not_the_tasks(built: Bundle, console: Console) -> None:
    terminal.show_bundle(console, built)
    text = shown(console)
    for line in ("test score", "accuracy drop"):
        assert f"{line} (agreement with the original)" in text


def test_trials_are_shown_with_the_chosen_one_marked(built: Bundle, console: Console) -> None:
    terminal.show_trials(console, built.manifest)
    marked = [line for line in shown(console).splitlines() if "→" in line]
    assert len(marked) == 1
    assert built.manifest.recipe.name in marked[0]
    for trial in built.manifest.tried:
        assert trial.recipe.name in shown(console)


def test_a_failed_trial_is_shown_with_its_reason(built: Bundle, console: Console) -> None:
    failed = Trial(Recipe("fp16", "onnx", ()), failure=f"ParityLost: {BRACKETS}")
    terminal.show_trials(console, replace(built.manifest, tried=(failed,)))
    assert f"onnx fp16: ParityLost: {BRACKETS}" in shown(console)


def test_names_with_brackets_are_shown_as_they_are(built: Bundle, console: Console) -> None:
    manifest = built.manifest
    named = replace(
        manifest,
        workload=replace(manifest.workload, name=f"net {BRACKETS}"),
        target=replace(manifest.target, title=f"board {BRACKETS}"),
    )
    terminal.show_bundle(console, Bundle(Path(f"dist {BRACKETS}"), named))
    for name in ("net", "board", "dist"):
        assert f"{name} {BRACKETS}" in shown(console)


def test_float_kernels_are_grouped_by_their_reason(built: Bundle, console: Console) -> None:
    fallbacks = [Fallback("Conv", (f"layer.{number}",), "kept in float") for number in range(6)]
    census = Census((), (*fallbacks, Fallback("Pool", (), "has no weights to quantize")))
    terminal.show_fallbacks(console, replace(built.manifest, census=census))
    assert "layer.0, layer.1, layer.2, layer.3 and 2 more" in shown(console)
    assert shown(console).count("kept in float") == 1
    assert "has no weights to quantize" in shown(console)


def test_where_nothing_fell_back_nothing_is_said(built: Bundle, console: Console) -> None:
    terminal.show_fallbacks(console, replace(built.manifest, census=Census(())))
    assert shown(console) == ""


def test_a_measurement_is_shown_with_its_bounds(built: Bundle, console: Console) -> None:
    measurement = replace(built.manifest.measurement, latencies=(0.001,) * 50)
    terminal.show_benched(console, built, [Benched("local", "host", measurement)])
    assert "1 ms (at least 1 ms, n = 50), measured on" in shown(console)
    assert "early-stopping bound" in terminal.latency(measurement, "latency_p50")


def test_a_long_run_is_shown_by_its_ends_with_heat_and_clock(console: Console) -> None:
    times = map(Seconds, (0.001, 0.002, 0.004))
    cool = Window(Seconds(0.0), 9000, *times, 41.0, Hertz(2.4e9))
    later, slower = Seconds(540.0), Seconds(0.0015)
    warm = replace(cool, begins=later, p50=slower, temperature=79.0, clock=Hertz(1.8e9))
    found = Sustained(
        *(Seconds(600.0), cool, warm, (cool, warm), 4, "a runtime 1.0", "a board"),
        taken_at="2026-01-01T00:00:00+00:00",
    )
    terminal.show_sustained(console, Benched("pi", "pi, a board"), found)
    said = " ".join(shown(console).split())
    assert "the median is +50% at the end; 41 °C to 79 °C, 2.40 GHz to 1.80 GHz" in said


def test_a_run_whose_halves_disagree_is_called_inconclusive(built: Bundle) -> None:
    drifting = replace(built.manifest.measurement, latencies=(0.001,) * 500 + (0.002,) * 500)
    assert terminal.latency(drifting, "latency_p50").endswith("INCONCLUSIVE: the halves disagree")


def test_an_outcome_in_spite_of_halves_that_disagree_is_told_as_one(
    built: Bundle, console: Console
) -> None:
    budget = replace(built.manifest.budget, latency_p99=Seconds(0.1))
    limited = replace(built, manifest=replace(built.manifest, budget=budget))
    drifting = replace(built.manifest.measurement, latencies=(0.001,) * 500 + (0.002,) * 500)
    found = Benched("local", "host", drifting, outcome=drifting.outcome(Seconds(0.1)))
    terminal.show_benched(console, limited, [found])
    said = " ".join(shown(console).split())
    assert "PASS: at most 100 ms, whichever half of the run is believed" in said


def test_an_intact_bundle_is_said_to_be(built: Bundle, console: Console) -> None:
    terminal.show_verification(console, built, Verification(7, 0.001, 0.05, "a runtime 1.0"))
    text = " ".join(shown(console).split())
    assert "is intact: 7 files by SHA-256; golden outputs within 0.001 (limit 0.05)" in text
