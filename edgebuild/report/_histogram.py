"""Draws how long each inference of a measurement took, with the percentiles and their bounds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go

from edgebuild.report import words
from edgebuild.report._chart import Chart, axis, chart, color, hover, label, time_unit
from edgebuild.vocabulary.measurement import Measurement, Percentile
from edgebuild.vocabulary.units import format_time

HEIGHT = 320
BINS = 60
# How much further than the last percentile is shown, as a share of what lies before it.
BEYOND = 0.6
SHARES = (0.5, 0.9, 0.99)


def histogram(measurement: Measurement) -> Chart:
    """All latencies up to just beyond the p99; what is slower is counted in the caption."""
    found = [measurement.percentile(share) for share in SHARES]
    edges = _edges(measurement.latencies, found)
    counts = _counts(measurement.latencies, edges)
    unit, scale = time_unit(edges[-1])
    beyond = sum(latency > edges[-1] for latency in measurement.latencies)
    slower = (
        f" {beyond} slower ones lie beyond the right edge, the slowest at "
        f"{format_time(max(measurement.latencies))}."
        if beyond
        else ""
    )
    said = ", ".join(f"{words.percentile(each)} {format_time(each.value)}" for each in found)
    return chart(
        "How long each inference took",
        f"A histogram of {len(measurement.latencies)} latencies: {said}.",
        f"{len(measurement.latencies)} inferences, one after the other, measured on "
        f"{measurement.machine}. Shaded: where each percentile "
        f"lies with 99 % confidence.{slower}",
        [
            go.Bar(
                x=[(low + high) / 2 / scale for low, high in pairwise(edges)],
                y=counts,
                width=(edges[1] - edges[0]) / scale,
                marker={"color": color("bar"), "line": {"color": color("surface"), "width": 0.5}},
                text=_hovers(edges, counts),
                textposition="none",
                hovertemplate="%{text}<extra></extra>",
                showlegend=False,
            )
        ],
        HEIGHT,
        xaxis=axis(f"latency, {unit}", range=[edges[0] / scale, edges[-1] / scale]),
        yaxis=axis("inferences", fixedrange=True),
        shapes=[shape for each in found for shape in _lines(each, edges[-1], scale)],
        annotations=[_name(each, row, scale) for row, each in enumerate(found)],
        margin={"l": 8, "r": 16, "t": 12, "b": 8},
    )


def _edges(latencies: Sequence[float], found: Sequence[Percentile]) -> list[float]:
    low = min(latencies)
    last = found[-1].value
    high = min(max(latencies), last + (last - low) * BEYOND)
    # All alike: a bin around them.
    low, high = (low * 0.95, low * 1.05) if high <= low else (low, high)
    return [low + (high - low) * number / BINS for number in range(BINS + 1)]


def _counts(latencies: Sequence[float], edges: Sequence[float]) -> list[int]:
    width = edges[1] - edges[0]
    counts = [0] * BINS
    for latency in latencies:
        if latency <= edges[-1]:
            counts[min(int((latency - edges[0]) / width), BINS - 1)] += 1
    return counts


def _hovers(edges: Sequence[float], counts: Sequence[int]) -> list[str]:
    return [
        hover(f"{format_time(low)} to {format_time(high)}", f"{count} inferences")
        for (low, high), count in zip(pairwise(edges), counts, strict=True)
    ]


def _lines(found: Percentile, right: float, scale: float) -> list[dict[str, Any]]:
    tall = {"yref": "paper", "y0": 0, "y1": 1}
    high = min(found.high or right, right)
    band = {"x0": found.low / scale, "x1": high / scale, "fillcolor": color("ink")}
    line = {"x0": found.value / scale, "x1": found.value / scale}
    return [
        {"type": "rect", **tall, **band, "opacity": 0.12, "line": {"width": 0}},
        {"type": "line", **tall, **line, "line": {"color": color("ink"), "width": 1.5}},
    ]


def _name(found: Percentile, row: int, scale: float) -> dict[str, Any]:
    """Beside its line, each in a row of its own: percentiles may lie close together."""
    text = f"{words.percentile(found)} {format_time(found.value)} ({words.bounds(found)})"
    place = {"yref": "paper", "yanchor": "top", "xanchor": "left", "xshift": 4}
    font = {"size": 11, "color": color("ink")}
    return label(text, found.value / scale, 1 - 0.12 * row, **place, font=font)
