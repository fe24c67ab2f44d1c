"""Boards for the tests of transports; without their parts, those tests say why they are skipped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from devices.boards import Board, adb_board, reason_to_skip, ssh_board

MARKS = ("ssh", "adb")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if any(item.get_closest_marker(mark) for mark in MARKS)]
    reason = reason_to_skip() if marked else ""
    if reason:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))


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
