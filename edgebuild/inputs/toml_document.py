"""A profile's TOML file, which knows on which line each key stands."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgebuild.vocabulary.errors import InvalidTarget

Tables = dict[str, Any]
Key = tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """A profile's text, which knows on which line each key stands."""

    path: Path
    text: str
    tables: Tables

    @classmethod
    def read(cls, path: Path) -> Document:
        try:
            text = path.read_text(encoding="utf-8")
            return cls(path, text, tomllib.loads(text))
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise InvalidTarget(f"{path}: cannot be read: {reason}") from None
        except UnicodeDecodeError:
            raise InvalidTarget(f"{path}: cannot be read: not UTF-8 text") from None
        except tomllib.TOMLDecodeError as error:
            raise InvalidTarget(_syntax_error(path, text, str(error))) from None

    def refusal(self, key: Key, reason: str) -> InvalidTarget:
        shown = ".".join(f'"{part}"' if "." in part else part for part in key)
        return InvalidTarget(f"{self.path}:{self._line_of(key)}: {shown}: {reason}")

    def _line_of(self, key: Key) -> int:
        """The key's line, else that of the nearest table around it."""
        around = (key[:length] for length in range(len(key), 0, -1))
        return next((self._lines[part] for part in around if part in self._lines), 1)

    @cached_property
    def _lines(self) -> dict[Key, int]:
        lines: dict[Key, int] = {}
        table: Key = ()
        for number, line in enumerate(self.text.splitlines(), start=1):
            if header := _HEADER.fullmatch(line):
                table = _parts(header[1])
                lines.setdefault(table, number)
            elif assignment := _ASSIGNMENT.match(line):
                lines.setdefault((*table, *_parts(assignment[1])), number)
        return lines


_PART = r"""(?:[\w-]+|"[^"]*"|'[^']*')"""
_DOTTED = rf"{_PART}(?:\s*\.\s*{_PART})*"
_HEADER = re.compile(rf"\s*\[\s*({_DOTTED})\s*\]\s*(?:#.*)?")
_ASSIGNMENT = re.compile(rf"\s*({_DOTTED})\s*=")


def _parts(dotted: str) -> Key:
    return tuple(part.strip("\"'") for part in re.findall(_PART, dotted))


def _syntax_error(path: Path, text: str, message: str) -> str:
    """tomllib's message with the line in front, where every other message has it."""
    at_line = re.search(r"\(at line (\d+), column \d+\)", message)
    line = int(at_line[1]) if at_line else len(text.splitlines())
    reason = re.sub(r"\s*\(at .*\)", "", message)
    return f"{path}:{line}: is not TOML: {reason[:1].lower()}{reason[1:]}"
