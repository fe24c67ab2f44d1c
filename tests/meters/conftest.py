"""Trees after published printouts: each text is what `grep -H ""` prints, one file a line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

RECORDINGS = Path(__file__).parent / "recordings"


def lay_out(recording: str, root: Path) -> Path:
    for line in (RECORDINGS / f"{recording}.txt").read_text().splitlines():
        name, _, text = line.rpartition(":")
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[[str], Path]:
    """The root of a tree as the device shows it."""
    return lambda recording: lay_out(recording, tmp_path / recording)
