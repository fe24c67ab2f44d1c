"""Peers are made once and run apart; one that fails is a row that says why."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
from peers import Peer, PeerFailed, made, rows_of, run
from summary_table import write_table

Row = dict[str, Any]
PEER = Peer("other", "1.0")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def failing(command: list[str]) -> Iterator[Row]:
    run(command)
    yield {"bytes": 1}


def test_what_a_program_prints_and_took_is_told() -> None:
    done = run(
        python("import os; print(os.environ['ASKED']); b = bytearray(300_000_000)"), ASKED="x"
    )
    assert done.printed == "x\n"
    assert done.peak > 300e6
    assert done.seconds > 0
    assert done.processor > 0


def test_a_program_that_writes_much_is_not_waited_for_in_vain() -> None:
    done = run(python("import sys; sys.stderr.write('e' * 2**20); print('o' * 2**20)"))
    assert len(done.printed) == 2**20 + 1


def test_a_peer_that_fails_is_a_row_with_its_last_words() -> None:
    command = python("import sys; print('loading', file=sys.stderr); sys.exit('no such model')")
    (row,) = rows_of(PEER, "convert", "other", "tiny", lambda: failing(command))
    assert row == {
        **{"task": "convert", "system": "other", "model": "tiny"},
        "error": "other 1.0: exit code 1: no such model",
    }


def test_a_peer_that_is_killed_is_a_row_that_says_so() -> None:
    command = python("import os; os.kill(os.getpid(), 9)")
    (row,) = rows_of(PEER, "decode", "other", "tiny", lambda: failing(command))
    assert row["error"] == "other 1.0: killed by signal 9"


def test_a_peer_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "DEADLINE", 0.2)
    with pytest.raises(PeerFailed, match="it did not end within 0.2 s"):
        run(python("import time; time.sleep(60)"))


def test_a_peer_that_wants_too_much_memory_is_told_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "memory_limit", lambda: 200_000_000)
    with pytest.raises(PeerFailed, match="out of the 200 MB that it may have: MemoryError"):
        run(python("bytearray(400_000_000)"))


def test_a_peer_is_made_once_and_again_only_after_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEBUILD_CACHE", str(tmp_path))
    tries = []

    def make(folder: Path) -> None:
        tries.append(folder)
        folder.mkdir()
        if len(tries) == 1:
            raise PeerFailed("no network")

    with pytest.raises(PeerFailed, match="cannot be installed: no network"):
        made(PEER, make)
    assert made(PEER, make) == made(PEER, make) == PEER.folder
    assert len(tries) == 2
    assert PEER.folder.is_relative_to(tmp_path)


def test_another_release_is_another_folder() -> None:
    assert Peer("other", "1.1").folder != PEER.folder != Peer("other", "1.0", ("more",)).folder


def test_tables_give_reasons_instead_of_figures(tmp_path: Path) -> None:
    rows = [
        {"task": "decode", "system": "edgebuild", "model": "m", "tokens_per_s": 9.5, "bytes": 1000},
        {"task": "decode", "system": "other", "model": "m", "error": "other 1.0: a | b"},
    ]
    results = tmp_path / "llm.json"
    results.write_text(json.dumps({"rows": [{**row, "machine": "a CPU"} for row in rows]}))
    write_table(results)
    written = results.with_suffix(".md").read_text()
    assert "Measured on a CPU." in written
    table = [line for line in written.splitlines() if line.startswith("|")]
    assert table[-2].startswith("| edgebuild | m | 1,000 | 9.5 |")
    assert table[-1].startswith("| other | m | failed: other 1.0: a \\| b |")
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1


def test_a_peak_of_memory_is_the_program_s_own() -> None:
    held = bytearray(300_000_000)
    held[::4096] = b"x" * len(held[::4096])
    done = run([sys.executable, "-c", "print(1)"])
    assert done.printed == "1\n"
    assert 1_000_000 < done.peak < 100_000_000
    assert 0 < done.processor < 60
