"""The report that travels in a bundle, as one HTML file that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgebuild.bundles.manifest import Manifest, SiteRecord
from edgebuild.report import words
from edgebuild.report._chart import Chart
from edgebuild.report._frontier import Goal, frontier
from edgebuild.report._histogram import SHARES, histogram
from edgebuild.report._layers import layers
from edgebuild.report._page import fill_in
from edgebuild.report._timeline import timeline
from edgebuild.vocabulary.artifact import Arithmetic
from edgebuild.vocabulary.measurement import Evidence
from edgebuild.vocabulary.trial import Trial
from edgebuild.vocabulary.workload import whole_drop

# The figures that open the report, as far as there are any.
HEADLINES: Mapping[str, str] = {
    "score": "score on test data",
    "latency_p99": "latency p99 on the target",
    "host_latency_p99": "latency p99 here",
    "latency_p50": "latency p50 measured",
    "memory": "peak memory",
    "storage": "file size",
    "download": "download size",
    "power": "power above idle",
    "load_time": "load time",
    "integer_time": "time on integer kernels",
}
# What recipes are called that the search points out.
TAGS: Mapping[str, str] = {"knee": "knee", "cheapest": "fastest", "best": "best score"}


def render_html(manifest: Manifest) -> str:
    """Fills in report.html.j2."""
    chosen = next(trial for trial in manifest.tried if trial.recipe == manifest.recipe)
    rows = layers(manifest.recipe, manifest.census, _losses(manifest))
    return fill_in(
        "report.html.j2",
        manifest=manifest,
        headlines=_headlines(manifest),
        titles=HEADLINES,
        chosen=chosen,
        trials=_rejected_last(manifest.tried, chosen),
        columns=words.TRIED,
        reshaped=words.reshaped(manifest.recipe),
        layers=rows,
        kinds=[kind for kind in Arithmetic if any(kind in row.times for row in rows)],
        longest=max((row.seconds for row in rows), default=0.0),
        is_planned=any(row.loss is not None for row in rows),
        greatest_loss=max((row.loss or 0.0 for row in rows), default=0.0),
        buys=_buys(manifest),
        # Elsewhere than on the target, what stands for the measured latency is predicted as well.
        is_clocked=chosen.figures["latency_p99"].evidence is Evidence.MEASURED,
        tags=_tags(manifest),
        fallbacks=words.fallbacks(manifest.census),
        latencies=[manifest.measurement.percentile(share) for share in SHARES],
        frontiers=_frontiers(manifest, chosen),
        timeline=timeline(manifest.census, _profile(manifest)),
        histogram=histogram(manifest.measurement),
    )


def _losses(manifest: Manifest) -> dict[str, float]:
    """What the planner expects to lose at each layer, without the parts that were reshaped."""
    precisions = {(site.path, str(got)) for site, got in manifest.recipe.precisions.items()}
    return {
        site.path: site.loss
        for site in manifest.search.sites
        if (site.path, site.choice) in precisions
    }


def _buys(manifest: Manifest) -> list[SiteRecord]:
    """The sites where something would lose less, the best buy first."""
    better = (site for site in manifest.search.sites if site.better)
    return sorted(better, key=words.price, reverse=True)


def _tags(manifest: Manifest) -> dict[str, list[str]]:
    """What the search says of a recipe, by its digest."""
    found: dict[str, list[str]] = {}
    for name, tag in TAGS.items():
        found.setdefault(getattr(manifest.search, name), []).append(tag)
    return found


def _headlines(manifest: Manifest) -> list[str]:
    """The figures to open with; what is the same on the target and here is shown once."""
    figures = manifest.figures
    known = [name for name in HEADLINES if name in figures]
    if figures["host_latency_p99"] == figures["latency_p99"]:
        known.remove("host_latency_p99")
    return known


def _rejected_last(tried: Sequence[Trial], chosen: Trial) -> list[Trial]:
    """The chosen one, then the others, best score first."""
    return sorted(tried, key=lambda trial: (trial is not chosen, -trial.score))


def _frontiers(manifest: Manifest, chosen: Trial) -> list[Chart]:
    """Score against the median, and against the p99 that the budget is about."""
    score = manifest.workload.float_score["validation"]
    drop = manifest.budget.accuracy_drop
    lowest = None if drop is None else score - drop * whole_drop(score)
    limit = manifest.budget.latency_p99
    drawn = (
        frontier(
            manifest.tried, chosen, "latency_p50", Goal(score, lowest, None), "Median measured"
        ),
        frontier(
            manifest.tried,
            chosen,
            "latency_p99",
            Goal(score, lowest, limit),
            f"p99 on {manifest.target.name}",
        ),
    )
    return [chart for chart in drawn if chart is not None]


def _profile(manifest: Manifest) -> str:
    figure = manifest.figures["integer_time"]
    return f"{words.evidence(figure)} by the profile of {manifest.artifact.runtime}"
