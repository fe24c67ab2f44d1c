"""Calls a device again when its link drops, until patience ends or nobody waits any more."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

from edgebuild.devices._link import Answer, Link, LinkDropped, ask
from edgebuild.vocabulary.errors import DeviceError

# Pauses between attempts to reach a device again that was there before.
RETRIES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0)

Result = TypeVar("Result")


class Patience:
    """One link, and how long to hope for it."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self._over = threading.Event()

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    def end(self) -> None:
        """Whoever still waits for the device, in another thread, is told to stop."""
        self._over.set()

    def refuse_once_left(self) -> None:
        if self.is_over:
            raise DeviceError(f"{self.link.name} was left before it was done")

    def ask(self, text: str, *words: str) -> Answer:
        return ask(self.link, text, *words)

    def insist(self, call: Callable[..., Result], *words: object) -> Result:
        """Calls again over a new connection when the link drops, as long as patience lasts."""
        for pause in RETRIES:
            try:
                return call(*words)
            except LinkDropped:
                self._over.wait(pause)
                self.refuse_once_left()
                with contextlib.suppress(LinkDropped):
                    self.link.connect()
        try:
            return call(*words)
        except LinkDropped as dropped:
            raise DeviceError(
                f"{dropped} and did not come back. The same command goes on where this one stopped"
            ) from None
