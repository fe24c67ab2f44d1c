"""Shows how far long work is: as bars in a terminal, as lines in a file or a pipe."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.units import Seconds

# How often a step that goes on says so where nothing can be drawn over.
LINE_EVERY = Seconds(10.0)
TITLE_WIDTH = 32


class Shown(Progress, AbstractContextManager["Shown"], Protocol):
    """Progress from its `with` to the end of it."""


def shown(console: Console) -> Shown:
    """Bars where the console is a terminal; else lines, since a file would get bars at the end."""
    return Bars(console) if console.is_terminal else Lines(console)


class Bars(AbstractContextManager["Bars"]):
    """One bar a step, as rich draws it; the finished ones stay."""

    def __init__(self, console: Console) -> None:
        self._bars = RichProgress(
            TextColumn(f"{{task.description:<{TITLE_WIDTH}}}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[_Bar]:
        task = self._bars.add_task(title, total=total or 1, note="")
        yield _Bar(self._bars, task)
        done = self._bars.tasks[task].total
        self._bars.update(task, completed=done, note="")

    def say(self, text: str) -> None:
        self._bars.console.print(text)


@dataclass(frozen=True)
class _Bar:
    bars: RichProgress
    task: TaskID

    def advance(self, note: str = "") -> None:
        self.bars.update(self.task, advance=1, note=note)


@dataclass(frozen=True)
class Lines(AbstractContextManager["Lines"]):
    """A line for each step that has ended, and now and then one for a step that goes on."""

    console: Console

    def __exit__(self, *_: object) -> None:
        """Nothing to put away."""

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[_Lines]:
        step = _Lines(self.console, title, total or 1)
        try:
            yield step
            step.done = step.total
        finally:
            step.show()

    def say(self, text: str) -> None:
        self.console.print(text)


@dataclass
class _Lines:
    """One step's lines."""

    console: Console
    title: str
    total: int
    done: int = 0

    def __post_init__(self) -> None:
        self.begun = self.told = time.monotonic()

    def advance(self, note: str = "") -> None:
        self.done += 1
        if time.monotonic() - self.told >= LINE_EVERY:
            self.show(note)

    def show(self, note: str = "") -> None:
        self.told = time.monotonic()
        minutes, seconds = divmod(round(self.told - self.begun), 60)
        clock = f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
        count = f"{self.done}/{self.total}"
        line = f"{self.title:<{TITLE_WIDTH}} {count:>9} {clock} {note}"
        self.console.print(escape(line.rstrip()), soft_wrap=True)
