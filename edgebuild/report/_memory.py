"""Draws what a language model needs of memory, beside what a device leaves one application."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from edgebuild.report._chart import Chart, axis, chart, color, hover, label
from edgebuild.vocabulary.fit import Loading, Option, Room
from edgebuild.vocabulary.units import Bytes, format_share, format_size

HEIGHT = 250
IN_ALL, OWN = "in all  ", "of its own  "
UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6))


@dataclass(frozen=True)
class Part:
    """Bytes for one thing; pages of mapped files are not the application's own memory."""

    title: str
    size: Bytes
    how: str
    color: str
    is_own: bool = True


def parts(option: Option) -> list[Part]:
    """The sum of what is needed at a full context, in the order in which it is drawn."""
    needs = option.needs
    mapped = (
        "prepacked for the device and mapped: the system can drop these pages and read them again"
        if needs.loading is Loading.MAPPED
        else "the embedding, looked up where it lies in the file"
    )
    heap = "copied by the runtime into the order that its kernels want"
    cache = f"keys and values of {option.context} tokens, as {option.cache}"
    return [
        Part("weights in mapped files", needs.mapped, mapped, "bar", is_own=False),
        Part("weights in the heap", needs.repacked, heap, "series-1"),
        Part("KV cache", needs.cache, cache, "series-2"),
        Part(
            "activations",
            needs.activations,
            "between operators, for a piece of a prompt",
            "series-3",
        ),
        Part("logits", needs.logits, "of one token, over the whole vocabulary", "series-5"),
        Part("the runtime", needs.runtime, "its heap, however small the network is", "series-4"),
    ]


def memory(option: Option, room: Room, target: str) -> Chart:
    """Two rows: everything against the whole limit, and what is no file's against its own."""
    needs = option.needs
    largest = max(room.total, room.anonymous, needs.total)
    unit, scale = next((unit for unit in UNITS if largest >= unit[1]), UNITS[-1])
    said = ", ".join(f"{part.title} {format_size(part.size)}" for part in parts(option))
    return chart(
        "What it needs, and what there is",
        f"{format_size(needs.total)} of {format_size(room.total)} in all, "
        f"{format_size(needs.anonymous)} of {format_size(room.anonymous)} of its own: {said}.",
        f"Hatched: all of it is predicted for {target}, by arithmetic at {option.context} tokens. "
        f"Of its {format_size(room.ram)} the device leaves one application "
        f"{format_size(room.total)} in all, and {format_size(room.anonymous)} as memory of its "
        "own, which no file holds a copy of.",
        [*_bars(option, scale), _left(option, room, scale)],
        HEIGHT,
        barmode="stack",
        legend_traceorder="normal",
        xaxis=axis(unit, range=[0, largest / scale * 1.12]),
        yaxis=axis(autorange="reversed", ticks="", fixedrange=True, showgrid=False),
        shapes=[_limit(row, size / scale) for row, size in enumerate((room.total, room.anonymous))],
        annotations=[
            label(
                f"limit {format_size(size)}",
                size / scale,
                row,
                xanchor="left",
                xshift=4,
                bgcolor=None,
            )
            for row, size in enumerate((room.total, room.anonymous))
        ],
    )


def _bars(option: Option, scale: float) -> Iterator[go.Bar]:
    total = option.needs.total
    for part in parts(option):
        said = hover(
            *(part.title, f"{format_size(part.size)}, {format_share(part.size / total)} of all"),
            *(part.how, "predicted"),
        )
        yield go.Bar(
            orientation="h",
            y=[IN_ALL, OWN],
            x=[part.size / scale, part.size / scale if part.is_own else 0],
            width=0.6,
            name=part.title,
            marker={
                "color": color(part.color),
                "line": {"color": color("surface"), "width": 0.5},
                "pattern": {"shape": "/", "size": 5, "solidity": 0.7},
            },
            text=[said, said],
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
        )


def _left(option: Option, room: Room, scale: float) -> go.Bar:
    """What stays free up to each limit, as an empty frame."""
    needs = option.needs
    free = [max(room.total - needs.total, 0), max(room.anonymous - needs.anonymous, 0)]
    return go.Bar(
        orientation="h",
        y=[IN_ALL, OWN],
        x=[size / scale for size in free],
        width=0.6,
        name="room left",
        marker={"color": color("page"), "line": {"color": color("line"), "width": 1}},
        text=[hover("room left", format_size(size), "predicted") for size in free],
        textposition="none",
        hovertemplate="%{text}<extra></extra>",
    )


def _limit(row: int, at: float) -> dict[str, Any]:
    place = {"x0": at, "x1": at, "y0": row - 0.42, "y1": row + 0.42}
    return {"type": "line", **place, "line": {"color": color("breached"), "width": 2}}
