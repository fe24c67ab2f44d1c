"""Progress that nobody watches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Silence:
    """Says nothing: for scripts, and for machines that read only the result."""

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Silence]:
        yield self

    def advance(self, note: str = "") -> None:
        """One more is done."""

    def say(self, text: str) -> None:
        """Nobody listens."""
