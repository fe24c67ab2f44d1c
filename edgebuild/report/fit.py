"""Language models in the terminal: whether one fits, and what a conversion has made."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgebuild.vocabulary.fit import Fit, Option
from edgebuild.vocabulary.units import format_energy, format_size, format_time


def as_json(fit: Fit) -> dict[str, object]:
    """All fields, and the sums that follow from them."""
    options = [
        asdict(option) | {"total": option.needs.total, "anonymous": option.needs.anonymous}
        for option in fit.options
    ]
    return asdict(fit) | {"fits": fit.chosen is not None, "options": options}


def show_fit(console: Console, fit: Fit) -> None:
    """All precisions, the chosen one marked; or the sum that does not fit, and what does."""
    console.print(f"{escape(fit.model)} ({fit.family}): {_parameters(fit)}")
    room = fit.room
    console.print(
        f"{fit.target} leaves an application {format_size(room.total)} of {format_size(room.ram)}, "
        f"of which {format_size(room.anonymous)} may be memory of its own"
    )
    console.print(_table(fit))
    if fit.chosen:
        console.print(f"[bold cyan]{escape(_verdict(fit.chosen))}[/]")
    else:
        console.print(f"[bold red]does not fit: {escape(fit.refusal)}[/]")
        for nearest in fit.nearest:
            console.print(escape(f"nearest with {nearest.change}: {_verdict(nearest.option)}"))
        if not fit.nearest:
            console.print("nothing that is known fits here")
    for note in fit.notes:
        console.print(f"[dim]{escape(note)}")


def show_converted(console: Console, folder: Path, size: int, read: int, seconds: float) -> None:
    """Where a converted model lies, how large it is, and how fast it was made."""
    console.print(f"{escape(str(folder))}: {format_size(size)}")
    if read:
        rate = format_size(read / max(seconds, 1e-9))
        console.print(f"read {format_size(read)} in {format_time(seconds)}, {rate}/s")
    else:
        console.print("it was there already, and every hash is right")


def _parameters(fit: Fit) -> str:
    active = f", {fit.active_parameters / 1e9:.3g} B read for each token"
    return f"{fit.parameters / 1e9:.4g} B parameters{active}"


def _table(fit: Fit) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        title=f"At {fit.context} tokens (predicted, by arithmetic)",
    )
    for title in ("precision", "file", "KV cache", "needs", "held", "longest", "token/s"):
        is_text = title in ("precision", "held")
        table.add_column(title, justify="left" if is_text else "right", no_wrap=True)
    for option in fit.options:
        mark = "→" if option is fit.chosen else " " if option.fits else "✗"
        table.add_row(*_cells(mark, option), style="" if option.fits else "dim")
    return table


def _cells(mark: str, option: Option) -> tuple[str, ...]:
    needs, speed = option.needs, option.speed
    return (
        f"{mark} {option.precision}",
        format_size(needs.stored),
        f"{format_size(needs.cache)} {option.cache}",
        format_size(needs.total),
        needs.loading,
        str(option.longest_context or "–"),
        f"{_rounded(speed.decode)}",
    )


def _rounded(rate: float) -> str:
    """Three digits that count, and thousands as such."""
    return f"{float(f'{rate:.3g}'):,.10g}"


def _verdict(option: Option) -> str:
    """ "m at int4-g32 fits: 5.2 GB with 4096 tokens; about 8 tokens/s …"."""
    speed = option.speed
    sustained = speed.decode_sustained
    lasting = f", {_rounded(sustained)} when it is hot" if sustained is not None else ""
    decode, bound, prompt = map(_rounded, (speed.decode, speed.decode_bound, speed.prefill_bound))
    return (
        f"{option.model} at {option.precision} fits: {format_size(option.needs.total)} with "
        f"{option.context} tokens; about {decode} tokens/s{lasting}, never more than {bound}; "
        f"a prompt at {prompt} tokens/s at most; "
        f"{format_energy(speed.energy_floor)} a token at least, for memory alone"
    )
