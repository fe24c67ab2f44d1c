"""The page in a bundle says what the manifest holds, draws it in a browser, and asks for nothing.

What only a browser can tell is tried in headless Chromium where there is one.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report.pages import DARK, LONG, NASTY, Browse, Opened, read, rows

from edgebuild import catalog
from edgebuild.bundles.manifest import Bundle, Manifest, PlannedRecord, SiteRecord
from edgebuild.bundles.pack import pack
from edgebuild.bundles.verify import verify
from edgebuild.report import words
from edgebuild.report._chart import time_unit
from edgebuild.report._frontier import Point, non_dominated
from edgebuild.report._histogram import histogram
from edgebuild.report._layers import layers
from edgebuild.report._timeline import timeline
from edgebuild.report.html import render_html
from edgebuild.vocabulary.artifact import Arithmetic, Census, Fallback, KernelRun
from edgebuild.vocabulary.measurement import Evidence, Figure, Measurement
from edgebuild.vocabulary.offer import NETWORK, Choice, Part, PartKind
from edgebuild.vocabulary.precision import LayerKind
from edgebuild.vocabulary.program import Site
from edgebuild.vocabulary.recipe import Recipe
from edgebuild.vocabulary.trial import Trial
from edgebuild.vocabulary.units import Bytes, Seconds, format_time
from edgebuild.vocabulary.verdict import BudgetLine, Status, Verdict

TRIED = "What was tried, and why it was not taken"
LAYERS = "Every layer"
WARNING = '<p class="warning"><b>INCONCLUSIVE:</b>'


@pytest.fixture(scope="module")
def page(built: Bundle) -> str:
    return render_html(built.manifest)


# ---- what stands in it


def test_it_opens_with_the_verdict(built: Bundle, page: str) -> None:
    assert "<title>small on robot-raspberry-pi-5: unknown</title>" in page
    assert words.verdict(built.manifest) in page.split("<section")[0]


def test_every_budget_line_stands_in_it_with_its_value_and_status(built: Bundle, page: str) -> None:
    found = rows(page, "The budget, line by line")
    for row, line in zip(found, built.verdict.lines, strict=True):
        assert line.figure is not None
        title, limit, _, status, _ = words.line(line)
        interval = words.interval(line.name, line.figure) or "–"
        assert row[:5] == [title, limit, words.brief(line.name, line.figure), interval, status]
        assert f"{line.figure.evidence} {words.place(line.figure)}" in row[5]
        assert line.reason in row[5]


def test_a_breached_line_says_by_how_much(built: Bundle) -> None:
    figure = built.manifest.figures["storage"]
    line = BudgetLine("storage", figure.value / 1.5, figure, Status.BREACHED)
    page = render_html(replace(built.manifest, verdict=Verdict((line,))))
    assert rows(page, "The budget, line by line")[0][5].startswith("50 % over.")


def test_without_a_budget_nothing_is_claimed(built: Bundle) -> None:
    page = render_html(replace(built.manifest, verdict=Verdict(())))
    assert "No budget was stated" in page
    assert '<p class="verdict ">\n    <span>' in page


def test_nothing_estimated_looks_measured(built: Bundle, page: str) -> None:
    """On another machine than the target, both kinds stand on the page."""
    found = [(look, text) for look, text in read(page).figures if text[-1:] not in ("d", "e")]
    assert {look for look, _ in found} == {"solid", "hollow"}
    for look, text in found:
        assert text.startswith("~") == (look == "hollow"), text
    p99 = built.manifest.figures["latency_p99"]
    assert p99.evidence is Evidence.PREDICTED
    assert ("hollow", words.brief("latency_p99", p99)) in found


@pytest.mark.parametrize("evidence", [Evidence.EMULATED, Evidence.DATASHEET])
def test_only_what_was_measured_is_solid(evidence: Evidence, built: Bundle) -> None:
    figure = replace(built.manifest.figures["load_time"], value=0.123, evidence=evidence)
    page = render_html(
        replace(built.manifest, figures={**built.manifest.figures, "load_time": figure})
    )
    assert ("hollow", "123 ms") in read(page).figures
    assert f'<span class="badge hollow">{evidence}</span>' in page


def test_every_recipe_that_was_tried_stands_in_it_the_chosen_one_first(
    built: Bundle,
) -> None:
    untagged = searched(built.manifest, knee="", cheapest="", best="")
    found = rows(render_html(untagged), TRIED)
    assert len(found) == len(built.manifest.tried)
    assert found[0][-1] == "chosen"
    assert found[0][1].startswith(built.manifest.recipe.name)
    for trial in built.manifest.tried:
        name = f"{trial.recipe.name} {words.families(trial.recipe)}"
        (row,) = [row for row in found if row[:2] == [trial.recipe.format, name]]
        assert row[2] == words.brief("score", trial.figures["score"])
    scores = [row[2] for row in found[1:]]
    assert scores == sorted(scores, reverse=True)


def test_a_failure_stands_in_it_with_its_reason(built: Bundle) -> None:
    failed = Trial(Recipe("fp16", "onnx", ()), failure=f"FellBackToFloat: {NASTY}")
    page = render_html(replace(built.manifest, tried=(*built.manifest.tried, failed)))
    assert rows(page, TRIED)[-1][-2:] == ["failed", f"failed: FellBackToFloat: {NASTY}"]


def test_every_layer_stands_in_it_with_its_precision(built: Bundle, page: str) -> None:
    found = {row[0]: row[1:3] for row in rows(page, LAYERS)}
    for site, precision in built.manifest.recipe.precisions.items():
        assert found[site.path] == [site.kind, precision]


SITES = (
    SiteRecord("0", "int8-static", 0.0123, 2e-5, "fp32", 3e-5, 0.0123),
    SiteRecord("2", "int8-static", 0.001, 1e-5),
    # What was reshaped there is another site than the layer of the same path.
    SiteRecord("0", "prune: keep-50%", 0.5, 1e-3, "as it was", -1e-6, 0.5),
)


def searched(manifest: Manifest, **found: Any) -> Manifest:
    return replace(manifest, search=replace(manifest.search, **found))


def test_expected_losses_stand_beside_their_layers(built: Bundle) -> None:
    recipe = replace(
        built.manifest.recipe,
        chosen=tuple(
            (site, Choice("quantize", "int8-static")) for site, _ in built.manifest.recipe.chosen
        ),
    )
    chosen = built.manifest.recipe
    tried = tuple(
        replace(trial, recipe=recipe) if trial.recipe == chosen else trial
        for trial in built.manifest.tried
    )
    manifest = replace(searched(built.manifest, sites=SITES), recipe=recipe, tried=tried)
    page = render_html(manifest)
    column = read(page).tables[LAYERS][0].index("expected loss, nats")
    found = {row[0]: row[column] for row in rows(page, LAYERS)}
    assert found.pop("0") == "~0.012"
    assert found.pop("2") == "~0.001"
    assert set(found.values()) == {"–"}
    without = render_html(replace(manifest, search=replace(manifest.search, sites=())))
    assert "expected loss, nats" not in read(without).tables[LAYERS][0]


def test_what_would_lose_less_stands_in_it_the_best_buy_first(built: Bundle) -> None:
    page = render_html(searched(built.manifest, sites=SITES))
    found = rows(page, "What would lose less, and what it would cost")
    assert [(row[1], row[4], row[7]) for row in found] == [
        ("prune: keep-50%", "as it was", "~free"),
        ("int8-static", "fp32", "~0.41 per ms"),
    ]


def test_a_latency_that_was_not_measured_on_the_target_is_not_said_to_be(built: Bundle) -> None:
    planned = (PlannedRecord("int8-static", "onnx", 0.001, 0.002, 0.1, 0.2),)
    page = render_html(searched(built.manifest, planned=planned))
    (row,) = rows(page, "What the planner expected, and what came of it")
    assert row == ["onnx", "int8-static", "~1 ms", "~2 ms", "~0.1", "0.2"]


def test_what_could_not_be_offered_stands_in_it_with_its_reason(built: Bundle) -> None:
    page = render_html(searched(built.manifest, dropped={"features.3": "MethodFailed: tied"}))
    found = read(page).tables["What could not be offered, and why"]
    assert found == [["features.3", "MethodFailed: tied"]]


def test_the_recipes_that_the_search_points_out_are_tagged(built: Bundle) -> None:
    chosen = built.manifest.recipe
    page = render_html(searched(built.manifest, knee=chosen.digest, cheapest="", best=""))
    assert rows(page, TRIED)[0][1].startswith(f"{chosen.name} knee")
    assert page.count('class="tag"') == 1


def test_what_was_done_to_the_network_stands_in_it(built: Bundle) -> None:
    done = (
        (Part("2", PartKind.CHANNELS), Choice("prune", "keep-50%")),
        (Part("4", PartKind.CHANNELS), Choice("prune", "keep-50%")),
        (Part("8", PartKind.LAYER), Choice("factorize", "rank-2")),
        (NETWORK, Choice("distill", "5-epochs")),
    )
    page = render_html(reshaped(built.manifest, done))
    assert rows(page, "What was done to the network") == [
        ["prune", "keep-50%", "channels ×2", "2, 4"],
        ["factorize", "rank-2", "layer", "8"],
        ["distill", "5-epochs", "network", "everywhere"],
    ]
    said = {row[0]: row[-1] for row in rows(page, LAYERS)}
    assert "prune: keep-50%" in said["2"]
    assert "factorize: rank-2" in said["8"]
    assert "distill" not in said["8"]
    assert "distill, factorize, prune ×2; " in page


def reshaped(manifest: Manifest, done: tuple[tuple[Part, Choice], ...]) -> Manifest:
    """The manifest, had its chosen recipe done these things as well."""
    recipe = replace(manifest.recipe, reshaped=done)
    tried = tuple(
        replace(trial, recipe=recipe) if trial.recipe == manifest.recipe else trial
        for trial in manifest.tried
    )
    return replace(manifest, recipe=recipe, tried=tried)


def test_float_kernels_are_grouped_by_their_reason(built: Bundle) -> None:
    fallbacks = [Fallback("Conv", (f"layer.{number}",), "kept in float") for number in range(3)]
    census = replace(built.manifest.census, fallbacks=tuple(fallbacks))
    page = render_html(replace(built.manifest, census=census))
    assert rows(page, "What runs in float, and why") == [
        ["Conv", "kept in float", "layer.0, layer.1, layer.2"]
    ]


def test_a_run_whose_halves_disagree_is_called_inconclusive(built: Bundle) -> None:
    steady = replace(built.manifest.measurement, latencies=(0.001,) * 1000)
    drifting = replace(steady, latencies=(0.001,) * 500 + (0.002,) * 500)
    assert WARNING not in render_html(replace(built.manifest, measurement=steady))
    assert WARNING in render_html(replace(built.manifest, measurement=drifting))


def test_a_profile_too_coarse_to_time_anything_is_said_to_be(built: Bundle) -> None:
    runs = tuple(replace(run, seconds=0.0) for run in built.manifest.census.runs)
    page = render_html(replace(built.manifest, census=Census(runs)))
    assert "too coarse" in page
    assert page.count('class="chart"') == 3


def test_digests_versions_and_notices_stand_in_it(built: Bundle, page: str) -> None:
    manifest = built.manifest
    for word in (
        *(manifest.artifact.sha256, manifest.workload.fingerprint, manifest.recipe.digest),
        *manifest.workload.digests.values(),
        *(f"{name} {version}" for name, version in manifest.versions.items()),
        *manifest.workload.notices.values(),
        *("The MIT License. Copyright (c) Plotly, Inc.",),
    ):
        assert word in page


def test_the_same_manifest_gives_the_same_page(built: Bundle, page: str) -> None:
    assert render_html(built.manifest) == page


def test_markup_in_names_is_shown_and_does_nothing(built: Bundle) -> None:
    page = render_html(named(built.manifest, NASTY))
    assert "<script>alert" not in page
    assert "{{ 7 * 7 }}" in page
    assert any(NASTY in row[1] for row in rows(page, TRIED))


def named(manifest: Manifest, name: str) -> Manifest:
    """The manifest with a name in every place where a user, a network or a runtime gives one."""
    failed = Trial(Recipe(name, "onnx", ()), failure=name)
    recipe = replace(manifest.recipe, name=name)
    tried = tuple(
        replace(trial, recipe=recipe) if trial.recipe == manifest.recipe else trial
        for trial in manifest.tried
    )
    runs = [replace(run, kernel=name, sites=(name,)) for run in manifest.census.runs]
    return replace(
        reshaped(
            replace(manifest, recipe=recipe, tried=(*tried, failed)),
            ((Part(name, PartKind.BLOCK), Choice(name, name)),),
        ),
        workload=replace(manifest.workload, name=name, notices={name: name}),
        target=replace(manifest.target, title=name),
        census=replace(manifest.census, runs=tuple(runs)),
        measurement=replace(manifest.measurement, machine=name),
    )


def test_the_page_is_packed_beside_the_report_and_verified(built: Bundle, tmp_path: Path) -> None:
    golden = {
        kind: [np.load(file) for file in sorted((built.path / "golden").glob(f"{kind}-*.npy"))]
        for kind in ("input", "output")
    }
    model = built.path / built.manifest.artifact.file
    page = render_html(built.manifest)
    packed = pack(tmp_path / "bundle", built.manifest, model, golden, "a report", page)
    assert (packed.path / "report.html").read_text(encoding="utf-8") == page
    assert "report.html" in packed.manifest.files
    assert "plotly.js: MIT" in (packed.path / "NOTICE").read_text()
    with catalog.device("local") as device:
        assert verify(packed, device).files == len(packed.manifest.files)


# ---- laws behind the charts

COORDINATE = st.integers(1, 6)
CANDIDATES = st.lists(st.tuples(COORDINATE, COORDINATE), min_size=1, max_size=12)


def measured(value: float) -> Figure:
    return Figure(value, Evidence.MEASURED, "host (a CPU)")


@given(CANDIDATES)
def test_no_candidate_is_beyond_the_frontier_and_none_is_missing(
    candidates: list[tuple[int, int]],
) -> None:
    points = [
        Point(Trial(Recipe("any", "onnx", ())), measured(latency), measured(score))
        for latency, score in candidates
    ]
    found = {(point.latency.value, point.score.value) for point in non_dominated(points)}
    for latency, score in candidates:
        is_beaten = any(
            (other <= latency and more >= score) and (other, more) != (latency, score)
            for other, more in candidates
        )
        assert ((latency, score) in found) == (not is_beaten)


COMPARED = ("accuracy_drop", "latency_p99", "storage", "memory")
FIGURES = st.lists(st.sampled_from((-0.5, 0.0, 1.0, 2.0)), min_size=4, max_size=4)


@given(FIGURES, FIGURES)
def test_a_rejected_candidate_is_called_worse_only_in_what_it_is_worse_in(
    rejected: list[float], chosen: list[float]
) -> None:
    trials = [
        Trial(
            Recipe(name, "onnx", ()),
            {name: measured(value) for name, value in zip(COMPARED, values, strict=True)},
        )
        for name, values in (("rejected", rejected), ("chosen", chosen))
    ]
    said = words.rejection(*trials)
    for name, here, there in zip(COMPARED, rejected, chosen, strict=True):
        # A score above the network's own counts as equal to it.
        is_worse = max(here, 0.0) > max(there, 0.0) if name == COMPARED[0] else here > there
        assert (words.WORSE[name] in said) == is_worse


def test_a_candidate_further_from_the_budget_is_rejected_by_the_lines_it_breaches() -> None:
    chosen, near = (
        BudgetLine("storage", 100.0, measured(value), status)
        for value, status in ((90.0, Status.MET), (150.0, Status.BREACHED))
    )
    met = BudgetLine("memory", 100.0, measured(10.0), Status.MET)
    said = words.rejection(
        Trial(Recipe("a", "onnx", ()), verdict=Verdict((near, met))),
        Trial(Recipe("b", "onnx", ()), verdict=Verdict((chosen, met))),
    )
    assert said == "breaches storage: 150 B, limit 100 B"


RUNS = st.lists(
    st.builds(
        KernelRun,
        kernel=st.sampled_from(("Conv", "Pool")),
        sites=st.sampled_from(((), ("a",), ("b",), ("a", "b"))),
        arithmetic=st.sampled_from(Arithmetic),
        seconds=st.sampled_from((0.0, 0.25, 0.5)),
    ),
    max_size=8,
)


@given(RUNS)
def test_every_kernel_belongs_to_one_row_and_every_layer_has_one(runs: list[KernelRun]) -> None:
    sites = [Site(path, LayerKind.LINEAR) for path in ("a", "b", "never-seen")]
    recipe = Recipe("any", "onnx", tuple((site, Choice("quantize", "fp32")) for site in sites))
    found = layers(recipe, Census(tuple(runs)), {"b": 0.5})
    assert sum(row.seconds for row in found) == sum(run.seconds for run in runs)
    shown = [name for row in found for name in row.name.split(", ")]
    assert {site.path for site in sites} <= set(shown)
    assert len({row.name for row in found}) == len(found)


@settings(max_examples=20)
@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=50))
def test_every_inference_is_in_the_histogram_or_in_its_caption(latencies: list[float]) -> None:
    zero = Bytes(0)
    measurement = Measurement(
        tuple(map(Seconds, latencies)), Seconds(0.1), zero, zero, zero, 1.0, 1, "any", "any", ""
    )
    found = histogram(measurement)
    drawn = sum(json.loads(found.figure)["data"][0]["y"])
    beyond = re.search(r"(\d+) slower", found.caption)
    assert drawn + (int(beyond[1]) if beyond else 0) == len(latencies)


@settings(max_examples=20)
@given(RUNS)
def test_a_timeline_is_as_long_as_its_kernels_together(runs: list[KernelRun]) -> None:
    found = timeline(Census(tuple(runs)), "measured")
    total = sum(run.seconds for run in runs)
    if not total:
        assert found is None
        return
    assert found is not None
    lengths = [length for lane in json.loads(found.figure)["data"] for length in lane["x"]]
    _, scale = time_unit(total)
    assert sum(lengths) == pytest.approx(total / scale)


# ---- in a browser


@pytest.fixture(scope="module")
def opened(page: str, browse: Browse) -> Opened:
    return browse(page)


@pytest.mark.slow
def test_a_browser_shows_the_verdict_and_draws_every_chart(built: Bundle, opened: Opened) -> None:
    assert words.verdict(built.manifest) in opened.said["verdict"]
    median, p99, run, latencies = opened.said["charts"]
    assert "lowest score allowed" in median
    latency = built.manifest.budget.latency_p99
    assert latency is not None
    assert f"limit {format_time(latency)}" in p99
    assert "time since the start" in run
    assert "p99" in latencies
    # Each candidate in two charts, with rings around the chosen one and around those in float.
    assert opened.said["points"] >= 2 * (len(built.manifest.tried) + 2)
    assert opened.said["bars"] > len(built.manifest.census.runs)


@pytest.mark.slow
def test_a_browser_finds_nothing_to_complain_about_and_is_asked_for_nothing(
    opened: Opened,
) -> None:
    assert opened.complaints == []
    assert opened.said["requests"] == []


@pytest.mark.slow
def test_a_page_that_asked_for_something_would_be_stopped_and_found_out(
    page: str, browse: Browse
) -> None:
    """So that the test before this one can fail."""
    asking = page.replace("</main>", '<img src="http://127.0.0.1:9/pixel.png"></main>')
    assert "Content Security Policy" in " ".join(browse(asking).complaints)


@pytest.mark.slow
def test_no_name_is_too_long_or_too_odd_for_a_narrow_page(built: Bundle, browse: Browse) -> None:
    odd = browse(render_html(named(built.manifest, LONG + NASTY)), width=500)
    assert odd.said["needed"] <= odd.said["width"]
    assert odd.complaints == []


@pytest.mark.slow
def test_charts_follow_the_reader_into_the_dark(page: str, opened: Opened, browse: Browse) -> None:
    light, dark = opened.said, browse(page, DARK).said
    assert light["ink"] == light["chartInk"] != dark["ink"] == dark["chartInk"]
