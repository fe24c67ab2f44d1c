"""What receives a file on a device, run by this machine's own shell."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from edgebuild.devices._link import script

CONTENT = b"weights" * 20_000


def received(file: Path, content: bytes, tools: Path) -> str:
    """What it says of a file that arrives as it should; `tools` come before the system's."""
    words = [str(file), str(len(CONTENT)), hashlib.sha256(CONTENT).hexdigest(), "0"]
    ran = subprocess.run(
        ["sh", "-c", script("receive"), "sh", *words],
        input=content,
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"},
    )
    return ran.stdout.decode().strip()


def test_a_whole_file_is_renamed_and_a_short_one_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "file"
    assert received(file, CONTENT[:-1], tmp_path) == "short"
    assert file.with_suffix(".part").read_bytes() == CONTENT[:-1]
    assert received(file, CONTENT, tmp_path) == "whole"
    assert file.read_bytes() == CONTENT


def test_another_content_is_not_kept(tmp_path: Path) -> None:
    file = tmp_path / "file"
    assert received(file, CONTENT[::-1], tmp_path) == "differs"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("meanwhile", "said"),
    [("mv", "whole"), ("rm", "failed mv: ")],
    ids=["renamed by another", "removed"],
)
def test_what_a_writer_of_a_dropped_link_does_meanwhile(
    tmp_path: Path, meanwhile: str, said: str
) -> None:
    """Between the sum and the renaming."""
    tools, file = tmp_path / "tools", tmp_path / "file"
    tools.mkdir()
    does = f"mv {file}.part {file}" if meanwhile == "mv" else f"rm {file}.part"
    tool = tools / "sha256sum"
    tool.write_text(f"#!/bin/sh\nPATH=${{PATH#*:}}\nsha256sum\n{does}\n")
    tool.chmod(0o755)
    assert received(file, CONTENT, tools).startswith(said)
    assert file.exists() == (said == "whole")
