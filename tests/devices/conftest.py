"""Boards for the tests of transports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from devices.boards import Board, adb_board, ssh_board


@pytest.fixture
def pi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    """A board with ssh."""
    with ssh_board(tmp_path / "pi", monkeypatch) as board:
        yield board


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    """A board with adb."""
    with adb_board(tmp_path / "phone", monkeypatch) as board:
        yield board
