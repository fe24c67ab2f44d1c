"""Language models in the terminal: what was built, shrunk and proven, and how fast it ran."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgebuild.report import words
from edgebuild.report.terminal import COLORS
from edgebuild.vocabulary.language_model import BenchedModel, LanguageModel, Proof, Shrunk
from edgebuild.vocabulary.units import format_energy, format_size, format_time


def show_model(console: Console, folder: Path, model: LanguageModel) -> None:
    """How it is stored, what it keeps of the network, and whether it fits."""
    layouts = ", ".join(f"{count} {layout}" for layout, count in model.layouts.items())
    console.print(f"{escape(model.name)} ({model.family}) for {model.target}")
    console.print(f"{model.format}: weights {format_size(model.weights_bytes)}; tensors: {layouts}")
    console.print(f"scales by {escape(model.scales)}; a cache of {model.context} × {model.cache}")
    for line in _proven(model):
        console.print(escape(line))
    for package, oldest in model.minimum_runtime.items():
        console.print(f"known to run rightly from {package} {oldest} on; run.py refuses older ones")
    for kernel, count in model.kernels.items():
        console.print(escape(f"where it was built, {count} layers ran on {kernel}"))
    for note in model.notes:
        console.print(f"[dim]{escape(note)}")
    for budget in model.verdict.lines:
        figure = budget.figure
        seen = format_size(figure.value) if figure else "unknown"
        console.print(
            f"[{COLORS[budget.status]}]{budget.name}: {seen} of {format_size(budget.limit)}, "
            f"{budget.status}[/] ({words.evidence(figure) if figure else budget.reason})"
        )
    console.print(f"bundle: {escape(str(folder))}")


def show_rates(console: Console, found: Sequence[BenchedModel]) -> None:
    """A row for each test on each device, and what stands beside it."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in ("device", "test", "token/s", "±"):
        table.add_column(title, justify="left" if title in ("device", "test") else "right")
    for one in found:
        for row in one.rates.rows if one.rates else ():
            table.add_row(escape(one.device), row.test, f"{row.avg_ts:.4g}", f"{row.stddev_ts:.2g}")
    console.print(table)
    for one in found:
        for line in _beside(one):
            console.print(f"{escape(one.device)}: {escape(line)}")


def show_shrunk(console: Console, folder: Path, found: Shrunk) -> None:
    """What stays of a checkpoint, and how near it is to what it was."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("")
    for title in ("parameters", "layers", "heads", "groups of them", "feed-forward width"):
        table.add_column(title, justify="right")
    for name, sizes in ((found.source, found.before), (folder.name, found.after)):
        counts = (sizes.layers, sizes.heads, sizes.cached_heads, sizes.ffn)
        table.add_row(escape(name), f"{sizes.parameters:,d}", *map(str, counts))
    console.print(table)
    console.print(escape(f"pruned, {_nearness(found.pruned)}"))
    if found.distilled:
        console.print(
            escape(f"after {found.steps} steps of distillation, {_nearness(found.distilled)}")
        )
    console.print(f"checkpoint: {escape(str(folder))}")


def _proven(model: LanguageModel) -> Iterator[str]:
    if model.proof is None:
        yield f"quality: unknown; {model.unproven}"
        return
    proof: Proof = model.proof
    yield _nearness(proof)
    if proof.answer_text:
        yield f"goes on with: {proof.answer_text!r}"


def _nearness(proof: Proof) -> str:
    return (
        f"against the float network on {proof.tokens} tokens of {proof.text}, measured here: "
        f"{proof.kl:.3g} nats of KL, the same token first at {proof.agreement:.1%}, perplexity "
        f"{proof.perplexity:.4g} (float {proof.float_perplexity:.4g})"
    )


def _beside(one: BenchedModel) -> Iterator[str]:
    rates = one.rates
    if rates is None:
        yield one.error
        return
    yield (
        f"first token after {format_time(rates.first_token_p50)} (p95 "
        f"{format_time(rates.first_token_p95)}); decoding {rates.decode_first:.4g} tokens/s at "
        f"first, {rates.decode_sustained:.4g} at last; loaded in {format_time(rates.load_seconds)}"
    )
    yield (
        f"memory: {format_size(rates.anonymous)} of its own, {format_size(rates.mapped)} of mapped "
        f"files, {format_size(rates.peak)} at most"
    )
    reached = (
        "the bandwidth could not be measured there"
        if one.bandwidth is None or one.share is None
        else f"{one.share:.0%} of {format_size(one.bandwidth)}/s, which its threads were measured "
        "to read"
    )
    yield (
        f"reads {format_size(one.bytes_per_token)} of weights a token: {reached}; at least "
        f"{format_energy(one.energy_floor)} a token (modelled-bound, for memory alone)"
    )
    if trial := one.memory_trial:
        yield f"{trial.fit} in {format_size(trial.limit)} ({trial.evidence})"
    if one.is_impossible:
        yield "impossible: faster than this memory can be read; measure again on a quiet machine"
