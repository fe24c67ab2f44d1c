"""Tables in the terminal; everything goes to stderr, stdout is for --json."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgebuild.bundles.manifest import ArmRecord, Bundle, Manifest
from edgebuild.bundles.setup import Equipment
from edgebuild.bundles.verify import Verification
from edgebuild.report import words
from edgebuild.vocabulary.contracts import MemoryTrial
from edgebuild.vocabulary.measurement import Evidence, Measurement, Outcome, Sustained
from edgebuild.vocabulary.power import Draw
from edgebuild.vocabulary.units import (
    format_energy,
    format_power,
    format_rate,
    format_size,
    format_time,
)
from edgebuild.vocabulary.verdict import BudgetLine, Status

if TYPE_CHECKING:
    from edgebuild.bundles.bench import Benched

# Columns of a file or a pipe, which has none of its own: rich's eighty would cut tables off.
WIDTH = 160
COLORS = {
    Status.MET: "green",
    Status.PREDICTED: "cyan",
    Status.UNKNOWN: "yellow",
    Status.BREACHED: "red",
}


def stderr() -> Console:
    """A console on a descriptor of its own, so that silencing a library does not silence it."""
    file = os.fdopen(os.dup(2), "w")
    has_width = file.isatty() or "COLUMNS" in os.environ
    return Console(file=file, highlight=False, width=None if has_width else WIDTH)


def show_bundle(console: Console, bundle: Bundle) -> None:
    """What was built, whether it fits and why: the closing table of a build."""
    manifest = bundle.manifest
    console.print()
    console.print(_budget_table(manifest))
    console.print(_chosen_table(manifest))
    color = COLORS[manifest.verdict.status]
    console.print(f"[bold {color}]{escape(words.verdict(manifest))}[/]")
    console.print(f"bundle  {escape(str(bundle.path))}")
    console.print(f"report  {escape(str(bundle.path / 'report.html'))}")


def show_trials(console: Console, manifest: Manifest) -> None:
    """Everything that was tried, the chosen one marked."""
    titles = [words.TRIED_TITLES[name] for name in words.TRIED]
    table = Table("", "format", "recipe", *titles, "verdict")
    for trial in sorted(manifest.tried, key=lambda trial: -trial.score):
        mark = "→" if trial.recipe == manifest.recipe else ""
        status = trial.verdict.status
        verdict = "[dim]failed" if trial.failure else f"[{COLORS[status]}]{status}"
        table.add_row(mark, *words.trial_row(trial, words.TRIED), verdict)
    console.print(table)
    if rule := words.level(manifest):
        console.print(escape(rule))
    for trial in manifest.tried:
        if trial.failure:
            failure = escape(f"{trial.recipe.format} {trial.recipe.name}: {trial.failure}")
            console.print(f"[dim]{failure}")


def show_sites(console: Console, manifest: Manifest) -> None:
    """What each site got, what the next better choice would cost there, and what binds."""
    sites = manifest.search.sites
    if not sites:
        return
    figures = f"the planner's figures: {words.loss(manifest)}, time on the target"
    table = Table(
        *("site", "got", "loses", "takes", "a better choice", "costs", "saves", "buys"),
        title=f"What each site got ({figures})",
    )
    for site in sorted(sites, key=words.price, reverse=True):
        table.add_row(*words.site_row(site))
    console.print(table)
    for place, reason in manifest.search.dropped.items():
        console.print(f"[dim]not offered: {escape(place)}: {escape(reason)}")
    binding = manifest.verdict.binding
    if binding is not None:
        title, limit, shown, status, _ = words.line(binding)
        console.print(f"the binding line is {title}: {shown} of {limit}, {status}")


def show_fallbacks(console: Console, manifest: Manifest) -> None:
    """The kernels that computed in float, grouped by reason."""
    grouped = words.fallbacks(manifest.census)
    if not grouped:
        return
    table = Table("float kernel", "layers", "reason", title="What runs in float, and why")
    for kernel, reason, sites in grouped:
        table.add_row(kernel, words.some(sites), reason)
    console.print(table)


def _budget_table(manifest: Manifest) -> Table:
    target = manifest.target
    title = f"{manifest.workload.name} on {target.name} ({target.title})"
    table = Table(title=escape(title))
    for column in ("budget line", "limit", "value", "verdict", "evidence"):
        table.add_column(column, overflow="fold")
    for found in manifest.verdict.lines:
        title, limit, shown, status, reason = words.line(found)
        table.add_row(title, limit, shown, f"[{COLORS[found.status]}]{status}", escape(reason))
    return table


def _chosen_table(manifest: Manifest) -> Table:
    figures, artifact = manifest.figures, manifest.artifact
    floats, scored = manifest.workload.float_score, figures["score"].basis
    table = Table(title=f"chosen: {artifact.format}, {manifest.recipe.name}", show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("layers", manifest.recipe.summary)
    for reason, paths in words.declined(manifest.recipe):
        table.add_row("other precision", escape(f"{words.some(paths)}: {reason}"))
    table.add_row(
        f"test score{scored and f' ({scored})'}",
        f"{words.format_score(figures['score'].value)} (network in float: "
        f"{words.format_score(floats['test'])}, "
        f"{words.number(manifest.workload.samples['test'], 'sample')}), "
        f"{words.evidence(figures['score'])}",
    )
    for name in ("latency_p50", "host_latency_p99"):
        title = name.removeprefix("host_").replace("_", " ")
        caveat = figures[name].note if manifest.measurement.is_conclusive else ""
        table.add_row(title, latency(manifest.measurement, name) + (caveat and f"; {caveat}"))
    table.add_row(
        "kernels",
        f"{words.value('integer_kernels', figures['integer_kernels'])} of the kernels and "
        f"{words.value('integer_time', figures['integer_time'])} of the time on integers, "
        f"by {artifact.runtime}'s profile",
    )
    table.add_row("against the network", f"{manifest.parity.signal_to_noise:.1f} dB SQNR")
    return table


def latency(measurement: Measurement, name: str, device: str = "host") -> str:
    """ "5.1 ms (5.0 ms to 5.2 ms, n = 1024, …), measured on …"."""
    found = measurement.percentile(0.5 if name == "latency_p50" else 0.99)
    bound = found.early_stopping
    claim = f", early-stopping bound {format_time(bound)}" if bound is not None else ""
    state = "" if measurement.is_conclusive else " INCONCLUSIVE: the halves disagree"
    return (
        f"{format_time(found.value)} ({words.bounds(found)}, "
        f"n = {len(measurement.latencies)}{claim}), {Evidence.MEASURED} on {escape(device)}, "
        f"{words.number(measurement.threads, 'thread')}{state}"
    )


def show_benched(console: Console, bundle: Bundle, found: Sequence[Benched]) -> None:
    """What `edgebuild bench` found: one device in full, several side by side."""
    if len(found) == 1 and found[0].measurement:
        console.print(_measurement_table(bundle, found[0], found[0].measurement))
    elif len(found) > 1:
        console.print(_devices_table(bundle, found))
    for one in found:
        if one.error:
            device = "" if one.device in one.error else f"{one.device}: "
            console.print(f"[red]{escape(device + one.error)}[/]", soft_wrap=True)
        if one.power_error:
            said = f"power is unavailable: {one.power_error}"
            console.print(f"[red]{escape(said)}[/]", soft_wrap=True)


def _measurement_table(bundle: Bundle, one: Benched, measurement: Measurement) -> Table:
    table = Table(title=escape(f"{bundle.path} on {one.where}"), show_header=False)
    table.add_row("runtime", measurement.runtime)
    for name in ("latency_p50", "host_latency_p99"):
        title = name.removeprefix("host_").replace("_", " ")
        table.add_row(title, latency(measurement, name, one.device))
    table.add_row("peak memory", f"{format_size(measurement.peak_memory)} over the runtime's own")
    table.add_row("of it anonymous", format_size(measurement.peak_anonymous))
    table.add_row("load time", format_time(measurement.load))
    if one.outcome is not None:
        limit = format_time(bundle.manifest.budget.latency_p99 or 0.0)
        is_told = measurement.is_conclusive or one.outcome is Outcome.INCONCLUSIVE
        halves = "" if is_told else ", whichever half of the run is believed"
        table.add_row("p99 within the budget", f"{one.outcome}: at most {limit}{halves}")
    elif one.unjudged and bundle.manifest.budget.latency_p99 is not None:
        budget = f"budget of {bundle.manifest.target.name}"
        table.add_row("p99", escape(f"{budget} not judged: {one.unjudged}"))
    if measurement.cores:
        governor = f", governor {escape(measurement.governor)}" if measurement.governor else ""
        table.add_row("cores", ", ".join(map(str, measurement.cores)) + governor)
    if one.memory_trial:
        table.add_row("memory limit", _trial(one.memory_trial))
    return table


def show_sustained(console: Console, one: Benched, found: Sustained) -> None:
    """A long run: its first and last minute, and how warm and how fast the processor was."""
    titles = ("", "from", "p50", "p90", "p99", "inferences")
    table = Table(*titles, title=escape(f"{format_time(found.seconds)} on {one.where}"))
    for name, window in (("first", found.first), ("last", found.last)):
        times = (window.begins, window.p50, window.p90, window.p99)
        table.add_row(name, *map(format_time, times), str(window.inferences))
    table.caption = f"the median is {found.slowdown:+.0%} at the end; {words.climate(found)}"
    console.print(table)


def _devices_table(bundle: Bundle, found: Sequence[Benched]) -> Table:
    titles = ("device", "p50", "p99", "memory", "load", "runtime", "where it was measured")
    table = Table(*titles, title=escape(str(bundle.path)))
    for one in found:
        measured = one.measurement
        if measured is None:
            fit = one.memory_trial.fit if one.memory_trial else "failed"
            table.add_row(escape(one.device), f"[red]{fit}", *[""] * 4, escape(one.where))
            continue
        state = "" if measured.is_conclusive else " ?"
        trial = f"\n{one.memory_trial.fit}" if one.memory_trial else ""
        table.add_row(
            escape(one.device),
            format_time(measured.percentile(0.5).value) + state,
            format_time(measured.percentile(0.99).value),
            format_size(measured.peak_memory) + trial,
            format_time(measured.load),
            measured.runtime,
            escape(one.where),
        )
    if any(one.measurement and not one.measurement.is_conclusive for one in found):
        table.caption = "? inconclusive: the halves of the run disagree"
    return table


def _trial(trial: MemoryTrial) -> str:
    return f"{trial.fit} in {format_size(trial.limit)} ({escape(trial.evidence)})"


def show_draw(console: Console, bundle: Bundle, draw: Draw, line: BudgetLine | None) -> None:
    """What a meter showed, with its label, and what that makes of the bundle's power budget."""
    table = Table(title=f"power by {draw.sensor.name}", show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("active", words.with_interval(draw.active, format_power))
    table.add_row("idle", words.with_interval(draw.idle, format_power))
    table.add_row("above idle", words.with_interval(draw.above_idle, format_power))
    table.add_row("energy per inference", words.with_interval(draw.energy, format_energy))
    table.add_row("label", escape(words.evidence(draw.energy)))
    console.print(table)
    manifest = bundle.manifest
    if line is not None:
        title, limit, shown, status, reason = words.line(line)
        at = f"{title} at {format_rate(manifest.budget.rate or 0.0)}"
        console.print(f"{at}: {shown} of {limit}, [{COLORS[line.status]}]{status}")
        console.print(f"[dim]{escape(reason)}")
    elif manifest.budget.power is not None:
        console.print(f"the power budget is for {manifest.target.name}: not measured there")


def show_verification(console: Console, bundle: Bundle, found: Verification) -> None:
    """What `edgebuild verify` found."""
    console.print(
        f"[green]{escape(str(bundle.path))} is intact[/]: "
        f"{words.number(found.files, 'file')} by SHA-256; "
        f"golden outputs within {found.relative_error:.2g} (limit {found.limit:g}) "
        f"in {found.runtime}"
    )


def show_equipment(console: Console, device: str, found: Equipment) -> None:
    """What `edgebuild device setup` leaves behind."""
    packages = ", ".join(f"{name} {release}" for name, release in found.packages.items() if release)
    python = ".".join(map(str, found.python))
    console.print(f"{escape(device)}: Python {python} on {found.machine} has {escape(packages)}")


def show_arm_proofs(console: Console, manifest: Manifest, proofs: Sequence[ArmRecord]) -> None:
    """What the artifact computes on ARM64 code; the code is real, the processor is not."""
    for proof in proofs:
        console.print(escape(words.arm(proof, manifest.parity)))
