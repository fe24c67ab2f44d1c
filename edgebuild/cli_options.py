"""Options that commands share, and what they print as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

# The exit code of a budget that is not kept.
BREACHED = 3

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Context = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Of a language model: tokens that its cache holds; 4096 unless it was made for fewer.",
    ),
]
Dist = Annotated[Path, typer.Argument(help="A bundle: the folder that `build -o` wrote.")]


def plain(value: Any) -> Any:
    from dataclasses import asdict

    return asdict(value)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))
