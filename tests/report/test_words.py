"""Numbers become text with their units and their evidence, and never claim more than they hold."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebuild.bundles.manifest import Bundle, Manifest, SiteRecord
from edgebuild.report import words
from edgebuild.vocabulary.measurement import Evidence, Figure
from edgebuild.vocabulary.recipe import Recipe
from edgebuild.vocabulary.target import Budget
from edgebuild.vocabulary.trial import Trial
from edgebuild.vocabulary.units import format_power
from edgebuild.vocabulary.verdict import BudgetLine, Status, Verdict

LINES = [wish.name for wish in fields(Budget) if wish.name != "rate"]


def measured(value: float) -> Figure:
    return Figure(value, Evidence.MEASURED, "host (a CPU)")


def predicted(value: float, low: float | None = None, high: float | None = None) -> Figure:
    return Figure(value, Evidence.PREDICTED, "a-target", low, high, "a roofline")


# ---- figures


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("latency_p50", 0.0043, "4.3 ms"),
        ("latency_p99", 0.000012, "12 µs"),
        ("host_latency_p99", 1.5, "1.5 s"),
        ("load_time", 0.25, "250 ms"),
        ("memory", 64e6, "64 MB"),
        ("storage", 5_120, "5.12 kB"),
        ("power", 0.75, "750 mW"),
        ("accuracy_drop", 0.0125, "1.25 %"),
        ("integer_kernels", 2 / 3, "66.7 %"),
        ("integer_time", 1.0, "100 %"),
        ("score", 0.98765, "0.9877"),
    ],
)
def test_every_figure_has_its_unit(name: str, value: float, expected: str) -> None:
    assert words.value(name, measured(value)) == expected


def test_a_prediction_is_shown_with_its_interval() -> None:
    shown = words.value("latency_p99", predicted(0.0043, 0.0017, 0.013))
    assert shown == "~4.3 ms (1.7 ms to 13 ms)"


@given(
    name=st.sampled_from(sorted(words.FORMATS)),
    value=st.floats(0, 1e6),
    interval=st.none() | st.just((0.0, 2e6)),
)
def test_a_prediction_never_looks_measured(
    name: str, value: float, interval: tuple[float, float] | None
) -> None:
    assert words.value(name, predicted(value, *(interval or ()))).startswith("~")
    assert not words.value(name, measured(value)).startswith("~")


@pytest.mark.parametrize("evidence", Evidence)
def test_a_figure_with_its_interval_ends_with_its_label(evidence: Evidence) -> None:
    figure = Figure(4.31, evidence, "a-place", 4.2, 4.42)
    mark = "~" if evidence.is_estimate else ""
    shown = words.with_interval(figure, format_power)
    assert shown == f"{mark}4.31 W (4.2 W to 4.42 W), {evidence}"


@pytest.mark.parametrize("evidence", Evidence)
def test_evidence_begins_with_its_kind_and_names_the_place(evidence: Evidence) -> None:
    shown = words.evidence(Figure(1.0, evidence, "a-place", note="on these grounds"))
    elsewhere = (Evidence.PREDICTED, Evidence.MODELLED_BOUND)
    linked = "for" if evidence in elsewhere else "on"
    assert shown == f"{evidence} {linked} a-place: on these grounds"


# ---- budget lines


@pytest.mark.parametrize("name", LINES)
def test_every_budget_line_has_words(name: str) -> None:
    found = words.line(BudgetLine(name, 0.5, measured(0.25), Status.MET))
    title, limit, shown, status, reason = found
    assert name.split("_")[0] in title
    assert limit.split()[-1] == words.value(name, measured(0.5)).split()[-1]
    assert shown == words.value(name, measured(0.25))
    assert (status, reason) == ("met", "measured on host (a CPU)")
    assert words.next_step(BudgetLine(name, 0.5, None, Status.UNKNOWN)).startswith("raise --")


def test_a_breached_line_says_by_how_much() -> None:
    line = BudgetLine("memory", 100.0, measured(150.0), Status.BREACHED)
    assert words.line(line)[-1] == "50 % over; measured on host (a CPU)"


def test_the_accuracy_line_says_what_was_scored_where_it_is_not_the_task(built: Bundle) -> None:
    stand_in = "agreement with the original, on synthetic inputs"
    figure = replace(measured(0.02), basis=stand_in)
    line = BudgetLine("accuracy_drop", 0.01, figure, Status.BREACHED)
    assert words.line(line)[0] == f"accuracy drop ({stand_in})"
    for said in (words.breach(line), words.verdict(manifest_with(built, line))):
        assert f"accuracy drop ({stand_in})" in said
    own = BudgetLine("accuracy_drop", 0.01, measured(0.02), Status.BREACHED)
    assert words.line(own)[0] == "accuracy drop"


def test_a_breached_limit_of_zero_has_no_percentage() -> None:
    line = BudgetLine("accuracy_drop", 0.0, measured(0.01), Status.BREACHED)
    assert words.line(line)[-1] == "measured on host (a CPU)"


def test_a_line_without_a_figure_is_unknown_and_says_why() -> None:
    line = BudgetLine("power", 3.0, None, Status.UNKNOWN, "no meter was read")
    assert words.line(line)[2:] == ("unknown", "unknown", "no meter was read")


# ---- verdicts


def manifest_with(built: Bundle, *lines: BudgetLine) -> Manifest:
    return replace(built.manifest, verdict=Verdict(lines))


def test_a_verdict_counts_its_lines_by_status(built: Bundle) -> None:
    lines = (
        BudgetLine("memory", 1.0, measured(0.5), Status.MET),
        BudgetLine("storage", 1.0, measured(0.5), Status.MET),
        BudgetLine("power", 1.0, None, Status.UNKNOWN),
    )
    said = words.verdict(manifest_with(built, *lines))
    assert said == "No budget line of robot-raspberry-pi-5 is breached: 2 met, 1 unknown."


def test_a_breached_verdict_names_the_line_the_limit_and_the_next_step(built: Bundle) -> None:
    lines = (
        BudgetLine("latency_p99", 0.01, predicted(0.05, 0.005, 0.1), Status.UNKNOWN),
        BudgetLine("storage", 1000.0, measured(1500.0), Status.BREACHED),
    )
    said = words.verdict(manifest_with(built, *lines))
    assert "Does not fit robot-raspberry-pi-5: storage is 1.5 kB, budget 1 kB" in said
    assert "raise --storage" in said


def test_every_breached_line_is_named_the_binding_one_first(built: Bundle) -> None:
    lines = (
        BudgetLine("memory", 1e6, measured(1.2e6), Status.BREACHED),
        BudgetLine("storage", 1000.0, measured(1500.0), Status.BREACHED),
    )
    said = words.verdict(manifest_with(built, *lines))
    assert "storage is 1.5 kB, budget 1 kB; peak memory is 1.2 MB, budget 1 MB." in said


def test_without_a_budget_nothing_is_claimed(built: Bundle) -> None:
    said = words.verdict(manifest_with(built))
    assert said.startswith("No budget was stated for robot-raspberry-pi-5")


def test_a_verdict_says_where_the_time_was_up_before_the_search_was_done(built: Bundle) -> None:
    line = BudgetLine("storage", 1000.0, measured(1500.0), Status.BREACHED)
    for whole in (manifest_with(built), manifest_with(built, line)):
        assert words.OUT_OF_TIME not in words.verdict(whole)
        cut = replace(whole, search=replace(whole.search, ran_out_of_time=True))
        before = words.verdict(whole).removesuffix(".")
        assert words.verdict(cut) == f"{before}. {words.OUT_OF_TIME}"


# ---- trials


def test_a_higher_score_above_the_networks_own_is_told_to_be_luck(built: Bundle) -> None:
    found = built.manifest
    chosen = next(trial for trial in found.tried if trial.recipe == found.recipe)
    best = replace(found.search, best=chosen.recipe.digest)
    figures = {**chosen.figures, "score": measured(2.0), "accuracy_drop": measured(-1.0)}
    lucky = replace(chosen, recipe=replace(chosen.recipe, name="lucky"), figures=figures)
    assert words.level(replace(found, search=best, tried=(chosen,))) == ""
    told = replace(found, search=best, tried=(chosen, lucky))
    assert words.level(told).startswith("One candidate scores higher than the chosen one")
    # Chosen by something else than its score.
    assert words.level(replace(told, search=replace(best, best="another"))) == ""


def test_a_site_tells_why_a_free_choice_was_not_taken() -> None:
    site = SiteRecord("conv", "int8", 0.1, 1e-3, "fp32", 0.0, 0.1, "no candidate has it")
    assert words.site_row(site)[-1] == "free; no candidate has it"
    assert words.site_row(replace(site, is_shared=True))[3] == "its layers' time"


def test_the_loss_is_named(built: Bundle) -> None:
    other = replace(built.manifest.search, loss="squared error")
    assert words.loss(built.manifest) == "KL in nats"
    assert words.loss(replace(built.manifest, search=other)) == "squared error"


@pytest.mark.parametrize(("count", "said"), [(0, "0 threads"), (1, "1 thread"), (4, "4 threads")])
def test_one_of_a_kind_is_singular(count: int, said: str) -> None:
    assert words.number(count, "thread") == said


def test_a_power_line_says_the_rate_that_it_is_for() -> None:
    line = BudgetLine("power", 3.0, replace(measured(1.0), basis="at 2 /s"), Status.UNKNOWN)
    assert words.line(line)[0] == "power above idle (at 2 /s)"


def test_a_failed_trial_has_dashes_for_figures() -> None:
    trial = Trial(Recipe("int8-static", "onnx", ()), failure="it failed")
    assert words.trial_row(trial, ("score", "storage")) == ["onnx", "int8-static", "–", "–"]


@given(text=st.text())
def test_any_text_fits_into_a_cell(text: str) -> None:
    shown = words.cell(text)
    assert len(shown.splitlines()) <= 1
    assert shown.replace("\\|", "").count("|") == 0
