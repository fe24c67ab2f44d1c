"""A progress that keeps what is said, for all tests that want to hear it."""

from __future__ import annotations

from edgebuild.vocabulary.silence import Silence


class Listening(Silence):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)
