"""Fills in a page that needs nothing beside it: style, script and plotly are inside."""

from __future__ import annotations

import base64
import gzip
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs, get_plotlyjs_version

from edgebuild.report import words
from edgebuild.vocabulary.measurement import Evidence


def fill_in(template: str, **values: Any) -> str:
    """A template that extends page.html.j2, with what every page uses."""
    environment = Environment(
        loader=PackageLoader("edgebuild.report", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
    )
    return environment.get_template(template).render(
        words=words,
        Evidence=Evidence,
        plotly=_packed(get_plotlyjs()),
        plotly_version=get_plotlyjs_version(),
        **values,
    )


def _packed(script: str) -> str:
    """A third of its size, as text; the same for the same script."""
    return base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode()
