"""Notes which tensors a conversion has written, so that it can be cut off anywhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

JOURNAL = "journal.jsonl"


@dataclass(frozen=True)
class Journal:
    """One line says what is converted, and how; each further one a tensor with its hashes.

    Lines go to the system at once and to the disk when it likes: after a crash of the machine the
    hashes, not the lines, say what is there.
    """

    path: Path
    identity: str

    @property
    def is_of_another(self) -> bool:
        """Whether another conversion has noted tensors here."""
        return len(lines := self._lines()) > 1 and not self._is_own(lines)

    def read(self) -> dict[str, list[str]]:
        """The tensors of this very conversion; after another one, the journal begins anew."""
        lines = self._lines()
        if not self._is_own(lines):
            self.path.write_text(json.dumps(["conversion", self.identity]) + "\n")
            return {}
        found = {}
        for line in lines[1:]:
            match _parsed(line):
                case [str(name), list(hashes)]:
                    found[name] = [str(each) for each in hashes]
        self._end_last_line()
        return found

    def append(self, name: str, hashes: Sequence[str]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([name, list(hashes)]) + "\n")

    def _lines(self) -> list[str]:
        try:
            return self.path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return []

    def _is_own(self, lines: Sequence[str]) -> bool:
        return bool(lines) and _parsed(lines[0]) == ["conversion", self.identity]

    def _end_last_line(self) -> None:
        """What was cut off in the middle must not take the next line with it."""
        if not self.path.read_bytes().endswith(b"\n"):
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n")


def _parsed(line: str) -> object:
    """None for a line that was cut off."""
    try:
        return json.loads(line)
    except ValueError:
        return None
