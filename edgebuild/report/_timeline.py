"""Draws one run of the network, kernel after kernel, in a lane for each kind of arithmetic."""

from __future__ import annotations

from itertools import accumulate

import plotly.graph_objects as go

from edgebuild.report import words
from edgebuild.report._chart import Chart, axis, chart, color, hover, time_unit
from edgebuild.vocabulary.artifact import Arithmetic, Census, KernelRun
from edgebuild.vocabulary.units import format_share, format_time

LANE = 46
AROUND = 96
# Bars of less than this part of the whole are a few pixels wide.
FINEST = 200


def timeline(census: Census, grounds: str) -> Chart | None:
    """The kernels of one run by their time; None where the profile is too coarse to tell any.

    `grounds` says where the times are from.
    """
    ends = list(accumulate(run.seconds for run in census.runs))
    if not ends or ends[-1] <= 0:
        return None
    total = ends[-1]
    unit, scale = time_unit(total)
    timed = [
        (run, end - run.seconds)
        for run, end in zip(census.runs, ends, strict=True)
        if run.seconds > 0
    ]
    lanes = [kind for kind in Arithmetic if any(run.arithmetic is kind for run, _ in timed)]
    shares = {
        kind: sum(run.seconds for run, _ in timed if run.arithmetic is kind) / total
        for kind in lanes
    }
    traces = [
        go.Bar(
            orientation="h",
            base=[start / scale for run, start in timed if run.arithmetic is kind],
            x=[run.seconds / scale for run, _ in timed if run.arithmetic is kind],
            y=[f"{kind} {format_share(shares[kind])}  "] * _count(timed, kind),
            width=0.72,
            marker={
                "color": color(f"arithmetic-{kind}"),
                # A gap parts neighbors that are wide enough for one.
                "line": {
                    "color": color("surface"),
                    "width": [
                        1.0 if run.seconds > total / FINEST else 0.0
                        for run, _ in timed
                        if run.arithmetic is kind
                    ],
                },
            },
            text=[_hover(run, total) for run, _ in timed if run.arithmetic is kind],
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
        )
        for kind in lanes
    ]
    said = ", ".join(f"{format_share(shares[kind])} {kind}" for kind in lanes)
    return chart(
        "One run, kernel after kernel",
        f"{len(timed)} kernels take {format_time(total)} together: {said} of the time.",
        f"Each bar is a kernel, as long as it takes, {grounds}: together {format_time(total)}. "
        "Profiling costs some time itself.",
        traces,
        AROUND + LANE * len(lanes),
        barmode="overlay",
        xaxis=axis(f"time since the start, {unit}", range=[0, total / scale * 1.01]),
        yaxis=axis(autorange="reversed", ticks="", fixedrange=True, showgrid=False),
        margin={"l": 8, "r": 16, "t": 8, "b": 8},
    )


def _count(timed: list[tuple[KernelRun, float]], kind: Arithmetic) -> int:
    return sum(run.arithmetic is kind for run, _ in timed)


def _hover(run: KernelRun, total: float) -> str:
    return hover(
        ", ".join(run.sites) or "no layer's weights",
        run.kernel,
        f"{format_time(run.seconds)}, {format_share(run.seconds / total)} of the time",
        words.ARITHMETIC[run.arithmetic],
    )
