"""Draws all candidates by score and latency, and the line that none of them is beyond."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import plotly.graph_objects as go

from edgebuild.report import words
from edgebuild.report._chart import Chart, axis, chart, color, hover, label, time_unit
from edgebuild.vocabulary.measurement import Evidence, Figure
from edgebuild.vocabulary.trial import Trial
from edgebuild.vocabulary.units import Seconds, format_time
from edgebuild.vocabulary.verdict import Status

HEIGHT = 380
SHAPES = ("circle", "square", "diamond", "triangle-up", "pentagon")
FAINT = 0.35
# Latencies that differ by more than this factor are drawn on a logarithmic axis.
WIDE = 4.0
# Intervals run out of the chart where they reach further than this factor beyond all values.
OVERHANG = 3.0
# Scores further below the first quartile than this many quartile distances are drawn at the lower
# edge (Tukey's fence), so that a few broken candidates do not squeeze all others into a strip.
FENCE = 1.5
# A quartile distance below this share of the best score counts as so much.
NARROWEST = 0.02


@dataclass(frozen=True)
class Goal:
    """What the candidates are held against; None where the budget says nothing."""

    float_score: float
    lowest_score: float | None
    latency: Seconds | None


@dataclass(frozen=True)
class Point:
    """A candidate in the chart."""

    trial: Trial
    latency: Figure
    score: Figure

    @property
    def is_estimate(self) -> bool:
        return {self.latency.evidence, self.score.evidence} != {Evidence.MEASURED}


def frontier(
    trials: Sequence[Trial], chosen: Trial, latency: str, goal: Goal, title: str
) -> Chart | None:
    """Scores over "latency_p50" or "latency_p99"; None where no candidate has both."""
    points = [
        Point(trial, trial.figures[latency], trial.figures["score"])
        for trial in trials
        if {latency, "score"} <= set(trial.figures)
    ]
    if not points:
        return None
    best = non_dominated(points)
    window = _window(points, best, goal)
    floats = [point for point in points if point.trial.recipe.is_float]
    taken = [point for point in points if point.trial.recipe == chosen.recipe]
    traces = [
        _line([point for point in best if not window.is_below(point)], window),
        *_clouds(points, latency, window),
        _marked(floats, "in float", "diamond-open", window),
        _marked(taken, "chosen", "circle-open", window),
    ]
    return chart(
        f"{title}, {_kinds(points)}",
        _description(points, best, chosen, latency),
        _caption(points, window),
        traces,
        HEIGHT,
        xaxis=axis(f"latency, {window.unit}", **window.x_axis),
        yaxis=axis("score on validation data", range=window.y_range),
        shapes=_limits(goal, window),
        annotations=_names_of_limits(goal, window),
    )


def non_dominated(points: Sequence[Point]) -> list[Point]:
    """By latency, those that are better than all that are as fast: no other has more of both."""
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (point.latency.value, -point.score.value)):
        if not found or point.score.value > found[-1].score.value:
            found.append(point)
    return found


@dataclass(frozen=True)
class _Window:
    """What of the plane is shown; scores below `floor` are drawn at the lower edge, at `edge`."""

    unit: str
    scale: float
    is_wide: bool
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    floor: float
    edge: float

    def x(self, seconds: float) -> float:
        return seconds / self.scale

    def y(self, point: Point) -> float:
        return self.edge if self.is_below(point) else point.score.value

    def is_below(self, point: Point) -> bool:
        return point.score.value < self.floor

    @property
    def x_axis(self) -> dict[str, Any]:
        if not self.is_wide:
            return {"range": self.x_range}
        low, high = map(math.log10, self.x_range)
        decades = range(math.floor(low), math.ceil(high))
        # Plotly itself would write 0.5 as a small 5.
        ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
        named = [f"{tick:g}" for tick in ticks]
        return {"type": "log", "range": [low, high], "tickvals": ticks, "ticktext": named}


def _window(points: Sequence[Point], best: Sequence[Point], goal: Goal) -> _Window:
    values = [point.latency.value for point in points]
    least, most = min(values) / OVERHANG, max(values) * OVERHANG
    times = [*values, *([goal.latency] if goal.latency else [])]
    times += [min(max(edge, least), most) for point in best for edge in point.latency.interval]
    unit, scale = time_unit(max(times))
    low, high = min(times) / scale, max(times) / scale
    is_wide = high > WIDE * low > 0
    margin = (high - low) * 0.08 or high * 0.1
    floor = _floor([point.score.value for point in points])
    scores = [goal.float_score, *(max(point.score.value, floor) for point in points)]
    scores += [goal.lowest_score] if goal.lowest_score is not None else []
    room = (max(scores) - min(scores)) * 0.12 or 0.01
    return _Window(
        unit=unit,
        scale=scale,
        is_wide=is_wide,
        x_range=(low / 1.3, high * 1.3) if is_wide else (max(low - margin, 0.0), high + margin),
        y_range=(min(scores) - room, max(scores) + room),
        floor=floor,
        edge=min(scores) - room / 2,
    )


def _floor(scores: Sequence[float]) -> float:
    if len(scores) < 4:
        return min(scores)
    first, _, third = statistics.quantiles(scores, n=4)
    fence = first - FENCE * max(third - first, NARROWEST * abs(max(scores)))
    return min(score for score in scores if score >= fence)


def _line(best: Sequence[Point], window: _Window) -> go.Scatter:
    """A staircase through the non-dominated ones, with their intervals."""
    ends = [[edge / window.scale for edge in point.latency.interval] for point in best]
    x = [window.x(point.latency.value) for point in best]
    is_estimate = any(point.is_estimate for point in best)
    return go.Scatter(
        x=x,
        y=[window.y(point) for point in best],
        mode="lines",
        showlegend=False,
        line={
            **{"shape": "hv", "width": 1.5, "color": color("muted")},
            "dash": "dash" if is_estimate else "solid",
        },
        error_x={
            "array": [high - value for (_, high), value in zip(ends, x, strict=True)],
            "arrayminus": [value - low for (low, _), value in zip(ends, x, strict=True)],
            **{"color": color("muted"), "thickness": 1, "width": 3},
        },
        hoverinfo="skip",
    )


def _clouds(points: Sequence[Point], latency: str, window: _Window) -> list[go.Scatter]:
    """Solid where measured, hollow where estimated, faint where breached."""
    clouds = []
    for number, name in enumerate(sorted({point.trial.recipe.format for point in points})):
        of_format = [point for point in points if point.trial.recipe.format == name]
        kept = [point for point in of_format if not _is_breached(point)]
        lost = [point for point in of_format if _is_breached(point)]
        # One entry in the legend is enough for both.
        for part, opacity, is_named in ((kept, 1.0, True), (lost, FAINT, not kept)):
            if part:
                cloud = _cloud(part, latency, window, number % len(SHAPES))
                look = {"opacity": opacity, "showlegend": is_named}
                clouds.append(cloud.update(name=name, legendgroup=name, **look))
    return clouds


def _is_breached(point: Point) -> bool:
    return point.trial.verdict.status is Status.BREACHED


def _cloud(points: Sequence[Point], latency: str, window: _Window, number: int) -> go.Scatter:
    shapes = ["triangle-down" if window.is_below(point) else SHAPES[number] for point in points]
    return go.Scatter(
        x=[window.x(point.latency.value) for point in points],
        y=[window.y(point) for point in points],
        mode="markers",
        marker={
            "symbol": [
                f"{shape}-open" if point.is_estimate else shape
                for point, shape in zip(points, shapes, strict=True)
            ],
            "color": color(f"series-{number + 1}"),
            "size": 10,
            "line": {"width": 1.5, "color": color("surface")},
        },
        text=[_hover(point, latency) for point in points],
        hovertemplate="%{text}<extra></extra>",
    )


def _hover(point: Point, latency: str) -> str:
    trial, recipe = point.trial, point.trial.recipe
    return hover(
        f"{recipe.format}: {recipe.name}",
        words.families(recipe),
        f"score {words.value('score', point.score)}, {point.score.evidence}",
        f"latency {words.value(latency, point.latency)}, {point.latency.evidence}",
        point.latency.note,
        *(words.breach(line) for line in trial.verdict.lines if line.status is Status.BREACHED),
        f"verdict: {trial.verdict.status}",
    )


def _marked(points: Sequence[Point], name: str, symbol: str, window: _Window) -> go.Scatter:
    """Rings around some of the points."""
    return go.Scatter(
        x=[window.x(point.latency.value) for point in points],
        y=[window.y(point) for point in points],
        mode="markers",
        name=name,
        marker={"symbol": symbol, "size": 18, "color": color("ink"), "line": {"width": 1.5}},
        hoverinfo="skip",
    )


def _limits(goal: Goal, window: _Window) -> list[dict[str, Any]]:
    """Lines at the network's own score, at the lowest that is allowed, at the longest latency."""
    across = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "layer": "between"}
    upward = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "layer": "between"}
    own, allowed = {"color": color("muted"), "width": 1}, {"color": color("breached"), "width": 1}
    lines = [{**across, "y0": goal.float_score, "y1": goal.float_score, "line": own}]
    if goal.lowest_score is not None:
        lines.append({**across, "y0": goal.lowest_score, "y1": goal.lowest_score, "line": allowed})
    if goal.latency is not None:
        x = window.x(goal.latency)
        lines.append({**upward, "x0": x, "x1": x, "line": allowed})
    return lines


def _names_of_limits(goal: Goal, window: _Window) -> list[dict[str, Any]]:
    side = {"xref": "paper", "xanchor": "right", "bgcolor": "rgba(0,0,0,0)"}
    found = [label("network in float", 1, goal.float_score, yanchor="bottom", **side)]
    if goal.lowest_score is not None:
        found.append(label("lowest score allowed", 1, goal.lowest_score, yanchor="top", **side))
    if goal.latency is not None:
        x = window.x(goal.latency)
        text = f"limit {format_time(goal.latency)}"
        # Plotly wants the exponent of a label's place on a logarithmic axis, and the value itself
        # of a line's.
        place = math.log10(x) if window.is_wide else x
        below = {"yref": "paper", "yanchor": "bottom", "xanchor": "right"}
        found.append(label(text, place, 0, **below, bgcolor="rgba(0,0,0,0)"))
    return found


def _description(
    points: Sequence[Point], best: Sequence[Point], chosen: Trial, latency: str
) -> str:
    shown = "; ".join(
        f"{point.trial.recipe.format} {point.trial.recipe.name}, score "
        f"{words.value('score', point.score)} at {words.brief(latency, point.latency)}"
        for point in best
    )
    return (
        f"{len(points)} candidates by score and latency. No other one is better in both than: "
        f"{shown}. Chosen: {chosen.recipe.format} {chosen.recipe.name}."
    )


def _caption(points: Sequence[Point], window: _Window) -> str:
    grounds = {words.evidence(point.latency) for point in points}
    if len(grounds) > 1:
        # What is particular to one of them stands where one points at it.
        grounds = {words.evidence(replace(point.latency, note="")) for point in points}
    said = [f"Latency {' and '.join(sorted(grounds))}."]
    said.append("None beats those on the line in both score and latency.")
    if any(point.is_estimate for point in points):
        said.append("Hollow points and a dashed line are estimates.")
    if any(map(_is_breached, points)):
        said.append("Faint points breach a line of the budget.")
    below = sum(map(window.is_below, points))
    if below:
        said.append(f"{below} with a far lower score lie below the lower edge (▾).")
    return " ".join(said)


def _kinds(points: Sequence[Point]) -> str:
    """ "measured"."""
    return " and ".join(sorted({point.latency.evidence for point in points}))
