"""A chart of the report: a plotly figure in the page's own colors, and the words beside it."""

from __future__ import annotations

import html
import json
import textwrap
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from edgebuild.vocabulary.units import Seconds

HOVER_COLUMNS = 56
FONT = "system-ui, sans-serif"


@dataclass(frozen=True)
class Chart:
    """One chart: `figure` is plotly's JSON, `description` says it to who cannot see it."""

    title: str
    description: str
    caption: str
    height: int
    figure: str


def chart(
    title: str, description: str, caption: str, traces: list[Any], height: int, **layout: Any
) -> Chart:
    """Draws traces in the report's look; `layout` is plotly's, and adds to it."""
    figure = go.Figure(traces, {**_look(height), **layout})
    drawn = json.loads(figure.to_json())
    # Plotly's own theme is a page of defaults that the look above replaces.
    drawn["layout"].pop("template", None)
    # Inside a script element only "<" could end it.
    text = json.dumps(drawn, separators=(",", ":")).replace("<", "\\u003c")
    return Chart(title, description, caption, height, text)


def color(name: str) -> str:
    """A color of report.css, which the page looks up when it draws: light and dark differ."""
    return f"var(--{name})"


def axis(title: str = "", **changes: Any) -> dict[str, Any]:
    """An axis with quiet lines, as plotly's layout has it."""
    quiet = {
        "title": {"text": title, "standoff": 12},
        "gridcolor": color("grid"),
        "linecolor": color("line"),
        "zeroline": False,
        "showline": True,
        "automargin": True,
        "ticks": "outside",
        "tickcolor": color("line"),
        "ticklen": 4,
    }
    return {**quiet, **changes}


def label(text: str, x: float, y: float, **changes: Any) -> dict[str, Any]:
    """A word in the chart, as plotly's layout has it."""
    small = {"size": 11, "color": color("muted")}
    # On a ground of its own, so that it is read over what it lies on.
    return {
        **{"text": plain(text), "x": x, "y": y, "showarrow": False, "font": small},
        **{"bgcolor": color("surface"), "borderpad": 2, **changes},
    }


def plain(text: str) -> str:
    """Text without markup: plotly takes its labels for a kind of HTML."""
    return html.escape(text, quote=False)


def hover(*lines: str) -> str:
    """The lines of a hover box, the first one bold, long ones broken."""
    first, *rest = ("<br>".join(map(plain, _broken(line))) for line in lines if line)
    return "<br>".join([f"<b>{first}</b>", *rest])


def _broken(line: str) -> list[str]:
    return textwrap.wrap(line, HOVER_COLUMNS, subsequent_indent="  ") or [""]


def time_unit(longest: Seconds | float) -> tuple[str, float]:
    """The unit that shows times up to the longest with few digits, and its seconds."""
    units = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
    return next((unit for unit in units if longest >= unit[1]), units[-1])


def _look(height: int) -> dict[str, Any]:
    return {
        "template": "none",
        "height": height,
        "margin": {"l": 8, "r": 16, "t": 36, "b": 8},
        "paper_bgcolor": color("surface"),
        "plot_bgcolor": color("surface"),
        "font": {"family": FONT, "size": 12, "color": color("ink")},
        "hoverlabel": {
            "bgcolor": color("surface"),
            "bordercolor": color("line"),
            "font": {"family": FONT, "color": color("ink"), "size": 12},
            "align": "left",
        },
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "yanchor": "bottom",
            "itemsizing": "constant",
        },
        "hovermode": "closest",
    }
