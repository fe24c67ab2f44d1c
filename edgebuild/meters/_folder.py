"""Reads small files of the kernel by pattern: here, on a device, or in a recorded tree."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from edgebuild.vocabulary.contracts import Device


class Folder:
    """A folder such as /sys/class/hwmon, or a copy of one."""

    def __init__(self, path: str, device: Device | None = None) -> None:
        self.path = path
        self._device = device

    def read(self, *patterns: str) -> dict[str, str]:
        """What the files hold, by their path below the folder; without those nobody may read."""
        found = self._there(patterns) if self._device else self._here(patterns)
        return {path: text.strip() for path, text in found}

    def _here(self, patterns: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        root = Path(self.path)
        for pattern in patterns:
            for path in sorted(root.glob(pattern)):
                try:
                    text = path.read_text(errors="replace")
                except OSError:
                    # Sensors refuse with many codes: no right, no data yet, switched off.
                    continue
                yield path.relative_to(root).as_posix(), text

    def _there(self, patterns: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        """One command for all files: every round trip takes longer than they do."""
        assert self._device is not None
        script = f"cd {shlex.quote(self.path)} && grep -s -H '' {' '.join(patterns)}"
        done = self._device.glance(["sh", "-c", script])
        for line in done.stdout.splitlines():
            # Paths may hold a colon (`intel-rapl:0`); what sensors say does not.
            path, _, text = line.rpartition(":")
            if path:
                yield path, text
