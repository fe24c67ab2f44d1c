"""Where a meter reads: a source and a device that are given, and the time of each reading."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from edgebuild.meters._folder import Folder
from edgebuild.vocabulary.contracts import Device
from edgebuild.vocabulary.power import PowerSample
from edgebuild.vocabulary.units import Watts


@dataclass
class Source:
    """What every meter is made from that reads power at one moment after the other."""

    source: str = ""
    device: Device | None = None
    clock: Callable[[], float] = time.time

    def sample(self, watts: Callable[[], float]) -> list[PowerSample]:
        """One reading, at the middle of the time that it took."""
        before = self.clock()
        read = watts()
        return [PowerSample((before + self.clock()) / 2, Watts(read))]


@dataclass
class FolderSource(Source):
    """A source that is a folder of the kernel, at `root` unless given."""

    root: ClassVar[str]

    @cached_property
    def folder(self) -> Folder:
        return Folder(self.source or self.root, self.device)
