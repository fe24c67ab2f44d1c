"""Figures and verdicts in words: the one place where numbers become text."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgebuild.bundles.manifest import Manifest
from edgebuild.vocabulary.measurement import Evidence, Figure, Percentile
from edgebuild.vocabulary.trial import Trial
from edgebuild.vocabulary.units import format_power, format_share, format_size, format_time
from edgebuild.vocabulary.verdict import BudgetLine, Status

FORMATS: Mapping[str, Callable[[float], str]] = {
    "latency_p50": format_time,
    "latency_p99": format_time,
    "host_latency_p99": format_time,
    "load_time": format_time,
    "memory": format_size,
    "storage": format_size,
    "power": format_power,
    "accuracy_drop": format_share,
    "integer_kernels": format_share,
    "integer_time": format_share,
}
# What a table of trials shows of each, in order.
TRIED = ("score", "storage", "latency_p50", "latency_p99", "memory", "integer_kernels")
TITLES: Mapping[str, str] = {
    "latency_p99": "latency (p99)",
    "memory": "peak memory",
    "storage": "storage",
    "power": "power above idle",
    "accuracy_drop": "accuracy drop",
}


def value(name: str, figure: Figure) -> str:
    """ "4.3 ms", or "~4.3 ms (1.7 ms to 13 ms)" for an estimate, "~1 %" if its error is unknown."""
    form = FORMATS.get(name, _format_score)
    if figure.evidence is not Evidence.PREDICTED:
        return form(figure.value)
    if figure.low is None or figure.high is None:
        return f"~{form(figure.value)}"
    return f"~{form(figure.value)} ({form(figure.low)} to {form(figure.high)})"


def _format_score(score: float) -> str:
    return f"{score:.4f}"


def bounds(found: Percentile) -> str:
    """ "5.0 ms to 5.2 ms", or "at least 5.0 ms" where the run was too short for more."""
    if found.high is None:
        return f"at least {format_time(found.low)}"
    return f"{format_time(found.low)} to {format_time(found.high)}"


def evidence(figure: Figure) -> str:
    """ "measured on host (AMD EPYC)", or "predicted for robot-raspberry-pi-5: …"."""
    on = "for" if figure.evidence is Evidence.PREDICTED else "on"
    note = f": {figure.note}" if figure.note else ""
    return f"{figure.evidence} {on} {figure.where}{note}"


def line(found: BudgetLine) -> tuple[str, str, str, str, str]:
    """Title, limit, value, status and reason of one budget line."""
    form = FORMATS[found.name]
    shown = value(found.name, found.figure) if found.figure else "unknown"
    reason = found.reason or (evidence(found.figure) if found.figure else "")
    if found.status is Status.BREACHED and found.limit > 0:
        reason = f"{(found.overrun - 1) * 100:.0f} % over; {reason}"
    return TITLES[found.name], form(found.limit), shown, str(found.status), reason


def verdict(manifest: Manifest) -> str:
    """One sentence: does it fit, and which line binds."""
    found, target = manifest.verdict, manifest.target.name
    binding = found.binding
    if found.status is Status.BREACHED and binding is not None:
        title, limit, shown, _, _ = line(binding)
        return (
            f"Does not fit {target}: {title} is {shown}, budget {limit}. {_origin(manifest)}; "
            f"{next_step(binding)}"
        )
    if not found.lines:
        return f"No budget was stated for {target}; pass --latency, --memory … to have one judged."
    counts = [f"{_count(manifest, status)} {status}" for status in Status]
    said = ", ".join(count for count in counts if not count.startswith("0 "))
    return f"No budget line of {target} is breached: {said}."


def _origin(manifest: Manifest) -> str:
    """How a candidate that breaks the budget came to be chosen."""
    tried = [trial for trial in manifest.tried if not trial.failure]
    if any(trial.verdict.status is not Status.BREACHED for trial in tried):
        return "It kept the budget on validation data and breaks it on test data"
    return f"This is the nearest of {len(tried)} candidates"


def next_step(binding: BudgetLine) -> str:
    """What a user can do about a breached line."""
    option = {
        "latency_p99": "--latency",
        "memory": "--memory",
        "storage": "--storage",
        "power": "--power",
        "accuracy_drop": "--accuracy-drop",
    }[binding.name]
    return f"raise {option}, or choose another target or a smaller network"


def _count(manifest: Manifest, status: Status) -> int:
    return sum(found.status is status for found in manifest.verdict.lines)


def cell(text: str) -> str:
    """The text on one line, without ending the cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def trial_row(trial: Trial, names: tuple[str, ...]) -> list[str]:
    """Format, recipe, and one cell a figure."""
    cells = [value(name, trial.figures[name]) if name in trial.figures else "–" for name in names]
    return [trial.recipe.format, trial.recipe.name, *cells]
