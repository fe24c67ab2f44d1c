"""What this machine has free: the kernel's word, or the container's where that is less."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgebuild.inputs import this_machine


def test_memory_is_what_the_container_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(this_machine, "CGROUP", str(tmp_path))
    free = this_machine.available_memory()
    assert free > 0
    (tmp_path / "memory.max").write_text("50000000\n")
    (tmp_path / "memory.current").write_text("45000000\n")
    assert this_machine.available_memory() == 5_000_000
    (tmp_path / "memory.stat").write_text("anon 1000\ninactive_file 20000000\nactive_file 9\n")
    assert this_machine.available_memory() == 25_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert this_machine.available_memory() > 50_000_000
