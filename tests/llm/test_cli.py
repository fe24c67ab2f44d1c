"""`edgebuild plan` as a user meets it: a table, exit codes, one JSON object."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CONFIGS = Path(__file__).parent / "configs"
PROGRAM = str(Path(sys.executable).with_name("edgebuild"))


def edgebuild(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *words], capture_output=True, text=True, check=False)


def test_what_fits_is_shown_with_its_speed() -> None:
    done = edgebuild("plan", str(CONFIGS / "llama-3-8b.json"), "-t", "phone-12gb")
    assert done.returncode == 0, done.stderr
    assert "llama-3-8b at int4-g32+int8-g32-head fits" in " ".join(done.stderr.split())
    assert done.stdout == ""


def test_what_fits_nowhere_exits_with_3_and_the_nearest() -> None:
    done = edgebuild("plan", str(CONFIGS / "deepseek-r1.json"), "-t", "phone-12gb", "--json")
    assert done.returncode == 3, done.stderr
    found = json.loads(done.stdout)
    assert found["fits"] is False
    assert found["nearest"][0]["option"]["model"].startswith("DeepSeek-R1-Distill")
    assert found["options"][0]["total"] > 2.6e12


def test_what_is_no_checkpoint_is_told_what_is_taken() -> None:
    done = edgebuild("plan", str(CONFIGS.parent), "-t", "phone-12gb")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "give a folder with the config.json of a Hugging Face decoder" in done.stderr
