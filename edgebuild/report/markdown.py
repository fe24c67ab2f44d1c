"""The report that travels in a bundle, as Markdown."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from edgebuild.bundles.manifest import Manifest
from edgebuild.report import words


def render(manifest: Manifest) -> str:
    """Fills in report.md.j2."""
    environment = Environment(
        loader=PackageLoader("edgebuild.report", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    return environment.get_template("report.md.j2").render(
        manifest=manifest,
        words=words,
        trials=sorted(manifest.tried, key=lambda trial: -trial.score),
        columns=words.TRIED,
        latencies=[manifest.measurement.percentile(share) for share in (0.5, 0.9, 0.99)],
    )
