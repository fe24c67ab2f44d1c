"""Refuses, before any work, what a format has no kernel for."""

from __future__ import annotations

from collections.abc import Mapping

from edgebuild.vocabulary.contracts import Exporter
from edgebuild.vocabulary.errors import PrecisionRefused
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.program import Site


def refuse_without_kernel(exporter: Exporter, precisions: Mapping[Site, Precision]) -> None:
    """Names every layer whose precision the exporter refuses: it would run in float unnoticed.

    Raises:
        PrecisionRefused: at least one such layer.
    """
    reasons = [
        f"{site.path} to {precision}: {reason}"
        for site, precision in precisions.items()
        if (reason := exporter.refusal(site.kind, precision))
    ]
    if reasons:
        raise PrecisionRefused(f"{exporter.format}: {'; '.join(reasons)}")
