"""`edgebuild plan` and `convert` as a user meets them: tables, exit codes, one JSON object."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from llm.checkpoints import write_checkpoint

CONFIGS = Path(__file__).parent / "configs"
PROGRAM = str(Path(sys.executable).with_name("edgebuild"))


def edgebuild(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *words], capture_output=True, text=True, check=False)


def test_what_fits_is_shown_with_its_speed() -> None:
    done = edgebuild("plan", str(CONFIGS / "llama-3-8b.json"), "-t", "phone-12gb")
    assert done.returncode == 0, done.stderr
    assert "llama-3-8b at int4-g32+int8-head fits" in " ".join(done.stderr.split())
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


def test_a_checkpoint_is_converted_once(tmp_path: Path) -> None:
    checkpoint, out = write_checkpoint(tmp_path / "model"), tmp_path / "out"
    words = ("convert", str(checkpoint), "-o", str(out), "--precision", "int4-g16", "--search")
    first = edgebuild(*words, "--json")
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout)
    assert found["bytes"] == (out / "weights.data").stat().st_size
    assert found["read"] > 0
    again = edgebuild(*words)
    assert "every hash is right" in again.stderr
    assert (out / "config.json").read_bytes() == (checkpoint / "config.json").read_bytes()


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model", shards=2)
    (checkpoint / "model-00002-of-00002.safetensors").unlink()
    done = edgebuild("convert", str(checkpoint), "-o", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "model-00002-of-00002.safetensors is missing" in done.stderr


def test_bits_by_matrix_keep_a_size(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model")
    words = ("convert", str(checkpoint), "-o", str(tmp_path / "out"))
    done = edgebuild(*words, "--size", "60 kB", "--json")
    assert done.returncode == 0, done.stderr
    assert "chosen: " in done.stderr
    refused = edgebuild(*words, "--size", "1 kB")
    assert refused.returncode == 2
    assert "the smallest choices take" in refused.stderr
    assert edgebuild(*words, "--size", "1 GB", "--read", "1 GB").returncode == 2
