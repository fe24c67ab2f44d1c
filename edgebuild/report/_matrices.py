"""Draws how a language model's matrices are stored, layer by layer, and what an error costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from edgebuild.report._chart import Chart, axis, chart, color, hover, plain
from edgebuild.vocabulary.language_model import StoredMatrix
from edgebuild.vocabulary.units import format_size
from edgebuild.vocabulary.weight_format import WeightFormat

ROW, AROUND = 24, 110
# Numbers of layers that are written out at most.
TICKS = 24
# Letters of a kind beside its row.
LABEL = 32
# What few bits are drawn in; the larger the block that shares a scale, the paler.
COLORS = {2: "series-3", 4: "series-1", 8: "series-4", 16: "series-2", 32: "bar"}
PALER = {0: 1.0, 16: 1.0, 32: 0.85, 64: 0.7, 128: 0.55, 256: 0.4}
# The least sensitive matrix is still seen.
DARKEST, FAINTEST = {"color": color("series-1")}, 0.08


def layouts(matrices: Sequence[StoredMatrix]) -> Chart:
    """A cell for each matrix, in a row for each kind and a column for each layer."""
    names = sorted({one.layout for one in matrices}, key=_precision, reverse=True)
    found = {name: [one for one in matrices if one.layout == name] for name in names}
    said = ", ".join(f"{sum(one.count for one in found[name])} {name}" for name in names)
    return _grid(
        "Which matrix got which bits",
        f"Matrices by their layout: {said}.",
        f"A column is a layer; what the network has once spans them all. Matrices: {said}. "
        "Norms, biases and routers stay floats of four bytes. Point at a cell to read it.",
        matrices,
        [_cells(name, found[name], matrices, **_look(name)) for name in names],
    )


def sensitivities(matrices: Sequence[StoredMatrix]) -> Chart | None:
    """The same cells, darker where an error costs more; None where nobody measured."""
    known = [one for one in matrices if one.sensitivity is not None]
    if not known:
        return None
    values = [one.sensitivity for one in known if one.sensitivity is not None]
    low, high = min(values), max(values)
    span = math.log(high / low) or 1.0
    # Logarithms are rounded: the dearest may come out a little darker than there is.
    depths = (math.log(value / low) / span for value in values)
    shades = [min(FAINTEST + (1 - FAINTEST) * depth, 1.0) for depth in depths]
    bounds = f"{low:.2g} to {high:.2g} nats of KL a token"
    return _grid(
        "What an error costs there",
        f"Sensitivities of {len(known)} of {len(matrices)} matrices: {bounds}.",
        f"The darker, the dearer: {bounds} for a relative squared error of one, on a logarithmic "
        "scale, measured on a part of the text that no proof is made on. Matrices of one kind in a "
        "quarter of the depth were measured together. Cells that are missing were not measured.",
        matrices,
        [_cells("sensitivity", known, matrices, marker={**DARKEST, "opacity": shades})],
        showlegend=False,
    )


def known(one: StoredMatrix) -> tuple[str, str]:
    """ "0.031", "0.0012": sensitivity and expected loss in nats, "–" where nobody measured."""
    values = (one.sensitivity, one.loss)
    sensitivity, loss = ("–" if value is None else f"{value:.2g}" for value in values)
    return sensitivity, loss


def bits(one: StoredMatrix) -> float:
    """Bits a weight, with scales and zero points."""
    return 8 * one.size / (one.count * one.elements)


def title(one: StoredMatrix) -> str:
    """ "mlp.down_proj, layer 3"."""
    return one.kind if one.layer is None else f"{one.kind}, layer {one.layer}"


def _grid(
    title: str,
    description: str,
    caption: str,
    matrices: Sequence[StoredMatrix],
    traces: list[Any],
    **layout: Any,
) -> Chart:
    kinds, last = _kinds(matrices), _last(matrices)
    return chart(
        title,
        description,
        caption,
        traces,
        AROUND + ROW * len(kinds),
        barmode="overlay",
        xaxis=axis(
            "layer",
            range=[-0.6, last + 0.6],
            showgrid=False,
            tick0=0,
            dtick=max(1, math.ceil(last / TICKS)),
        ),
        yaxis=axis(
            range=[len(kinds) - 0.4, -0.6],
            tickvals=list(range(len(kinds))),
            ticktext=[f"{plain(_short(kind))}  " for kind in kinds],
            ticks="",
            fixedrange=True,
            showgrid=False,
        ),
        **layout,
    )


def _cells(
    name: str, some: Sequence[StoredMatrix], matrices: Sequence[StoredMatrix], **look: Any
) -> go.Bar:
    kinds, last = _kinds(matrices), _last(matrices)
    return go.Bar(
        name=name,
        x=[last / 2 if one.layer is None else one.layer for one in some],
        width=[last + 0.92 if one.layer is None else 0.92 for one in some],
        base=[kinds.index(one.kind) - 0.42 for one in some],
        y=[0.84] * len(some),
        text=[_said(one) for one in some],
        textposition="none",
        hovertemplate="%{text}<extra></extra>",
        **look,
    )


def _said(one: StoredMatrix) -> str:
    sensitivity, loss = known(one)
    is_known = one.sensitivity is not None
    return hover(
        title(one),
        f"{one.layout}: {bits(one):.3g} bits a weight, {format_size(one.size)}",
        f"{one.count} experts" if one.count > 1 else "",
        f"sensitivity {sensitivity} nats a token, measured" if is_known else "",
        f"expected to lose {loss} nats a token (predicted)" if one.loss is not None else "",
    )


def _short(kind: str) -> str:
    return kind if len(kind) <= LABEL else f"{kind[: LABEL - 1]}…"


def _kinds(matrices: Sequence[StoredMatrix]) -> list[str]:
    return list(dict.fromkeys(one.kind for one in matrices))


def _last(matrices: Sequence[StoredMatrix]) -> int:
    return max((one.layer for one in matrices if one.layer is not None), default=0)


def _look(name: str) -> dict[str, Any]:
    layout = WeightFormat.parse(name)
    return {"marker": {"color": color(COLORS[layout.bits])}, "opacity": PALER[layout.block]}


def _precision(name: str) -> tuple[int, int, bool]:
    layout = WeightFormat.parse(name)
    return layout.bits, -layout.block, not layout.is_symmetric
