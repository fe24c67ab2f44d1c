"""The targets in the terminal: all in a table, or one with the source of every fact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from edgebuild.vocabulary.target import Target
from edgebuild.vocabulary.units import (
    format_power,
    format_rate,
    format_share,
    format_size,
    format_time,
)

Row = tuple[str, str, str]


def as_json(targets: Sequence[Target]) -> list[dict[str, object]]:
    return [_plain(target) for target in targets]


def _plain(target: Target) -> dict[str, object]:
    """All but the thousands of timings of a probe, of which it names the device and the date."""
    probe = target.calibration
    told = {"device": probe.device, "taken_at": probe.taken_at} if probe else None
    return asdict(replace(target, calibration=None)) | {"calibration": told}


def show_all(targets: Sequence[Target]) -> None:
    """All targets with what they are usually asked for; it fits into eighty columns."""
    # The name is what a user types next: never cut short.
    longest = max(len(target.name) for target in targets)
    table = Table(
        Column("target", min_width=longest, overflow="fold"),
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for title in ("RAM", "runtimes", "latency", "memory", "power", "drop"):
        # A power says what it is above.
        table.add_column(title, no_wrap=title != "power", max_width=10)
    for target in targets:
        budget = {line: limit for line, limit, _ in _budget(target)}
        table.add_row(
            f"{target.name}\n[dim]{escape(target.title)}[/]",
            format_size(target.memory.ram),
            "\n".join(runtime.name for runtime in target.runtimes),
            *(budget.get(f"budget.{line}", "–") for line in BUDGET),
        )
        table.add_section()
    Console().print(table)


BUDGET = ("latency_p99", "memory", "power", "accuracy_drop")


def show_one(target: Target) -> None:
    """One target, every fact with its source."""
    table = Table(title=escape(f"{target.name}: {target.title}"))
    table.add_column("fact", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("source", overflow="fold")
    for row in (*_facts(target), *_budget(target)):
        table.add_row(*map(escape, row))
    Console().print(table)


def _facts(target: Target) -> Iterator[Row]:
    memory, compute, power = target.memory, target.compute, target.power
    values = {
        "memory.ram": format_size(memory.ram),
        "memory.app_share": f"{memory.app_share:g}",
        **({"memory.mapped_share": f"{memory.mapped_share:g}"} if memory.mapped_share else {}),
        "memory.bandwidth": f"{format_size(memory.bandwidth)}/s",
        "compute.isa": compute.isa,
        "compute.cores": str(compute.cores),
        "compute.clock": f"{compute.clock / 1e9:g} GHz" if compute.clock else "unknown",
        "compute.fp32": f"{compute.fp32 / 1e9:g} GFLOP/s",
        "compute.int8": f"{compute.int8 / 1e9:g} GOP/s",
        "power.idle": format_power(power.idle) if power.idle is not None else "unknown",
        "power.active": format_power(power.active) if power.active is not None else "unknown",
    }
    for runtime in target.runtimes:
        table = f"runtime.{runtime.name}"
        values[f"{table}.version"] = runtime.version
        values[f"{table}.threads"] = str(runtime.threads)
        values[f"{table}.activations"] = runtime.activations
        values[f"{table}.channel_multiple"] = str(runtime.channel_multiple)
        for kind, precisions in runtime.kernels.items():
            values[f"{table}.{kind}"] = ", ".join(precisions)
    for fact, value in values.items():
        yield fact, value, _source(target, fact)


def _source(target: Target, fact: str) -> str:
    """The fact's own source, or that of the table it stands in."""
    parts = fact.split(".")
    around = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((target.sources[key] for key in around if key in target.sources), "–")


def _budget(target: Target) -> Iterator[Row]:
    budget = target.budget
    texts = {
        "latency_p99": budget.latency_p99 and format_time(budget.latency_p99),
        "memory": budget.memory and format_size(budget.memory),
        "storage": budget.storage and format_size(budget.storage),
        "download": budget.download and format_size(budget.download),
        "power": budget.power and f"{format_power(budget.power)}, above idle",
        "rate": budget.rate and format_rate(budget.rate),
        "accuracy_drop": budget.accuracy_drop and format_share(budget.accuracy_drop),
    }
    for line, text in texts.items():
        if text:
            yield f"budget.{line}", text, _source(target, f"budget.{line}")
