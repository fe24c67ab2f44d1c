"""Refuses, before any work, a place where nothing can be written."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgebuild.vocabulary.errors import InvalidDestination


def check_writable(path: Path) -> None:
    """Asks the nearest folder that is there; those on the way to the path are not made.

    Raises:
        InvalidDestination: no right to write, or a read-only disk.
    """
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise InvalidDestination(f"{nearest} cannot be written to: {error.strerror}") from None
