"""`edgebuild plan` and `convert` as a user meets them: tables, exit codes, one JSON object."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

from llm.checkpoints import (
    write_checkpoint,
    write_random_network,
    write_text,
    write_tokenizer,
)

from edgebuild import cli_options
from edgebuild.vocabulary.decoder import USUAL_CONTEXT

CONFIGS = Path(__file__).parent / "configs"
PROGRAM = str(Path(sys.executable).with_name("edgebuild"))


def edgebuild(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *words], capture_output=True, text=True, check=False)


def test_what_fits_is_shown_with_its_speed() -> None:
    done = edgebuild("plan", str(CONFIGS / "llama-3-8b.json"), "-t", "phone-12gb")
    assert done.returncode == 0, done.stderr
    assert "llama-3-8b at int4-g128+int8-head fits" in " ".join(done.stderr.split())
    assert done.stdout == ""


def test_what_fits_nowhere_exits_with_3_and_the_nearest() -> None:
    done = edgebuild("plan", str(CONFIGS / "deepseek-r1.json"), "-t", "phone-12gb", "--json")
    assert done.returncode == 3, done.stderr
    found = json.loads(done.stdout)
    assert found["fits"] is False
    assert found["nearest"][0]["option"]["model"].startswith("DeepSeek-R1-Distill")
    assert found["options"][0]["total"] > 2.6e12


def test_the_usual_context_that_help_names_is_the_one_that_is_planned() -> None:
    option = get_args(cli_options.Context)[1]
    assert f"{USUAL_CONTEXT} unless" in option.help
    words = ("plan", str(CONFIGS / "llama-3-8b.json"), "-t", "phone-12gb", "--json")
    assert json.loads(edgebuild(*words).stdout)["options"][0]["context"] == USUAL_CONTEXT


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


def test_converted_weights_are_called_by_their_name_where_a_bundle_is_wanted(
    tmp_path: Path,
) -> None:
    out = str(tmp_path / "out")
    assert edgebuild("convert", str(write_checkpoint(tmp_path / "m")), "-o", out).returncode == 0
    for command in ("explain", "verify", "bench", "chat"):
        done = edgebuild(command, out)
        assert done.returncode == 2
        assert f"{out} holds a language model's weights alone" in done.stderr
        assert "`edgebuild build CHECKPOINT -t TARGET` makes one" in done.stderr


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


def test_a_precision_beside_a_size_is_refused(tmp_path: Path) -> None:
    folder = str(write_checkpoint(tmp_path / "model"))
    words = ["convert", folder, "-o", str(tmp_path / "out"), "--size", "1MB"]
    for option, value in (("--precision", "int8"), ("--read", "1MB")):
        done = edgebuild(*words, option, value)
        assert done.returncode == 2
        assert "not both" in done.stderr
        assert option in done.stderr
    assert not (tmp_path / "out").exists()


def test_build_bench_verify_and_chat(tmp_path: Path) -> None:
    folder, out = tmp_path / "tiny", str(tmp_path / "dist")
    write_random_network(folder, "llama", num_hidden_layers=1)
    write_tokenizer(folder)
    text = write_text(tmp_path / "words.txt")
    words = ["--weights", "int8", "--context", "256", "--text", str(text), "--json"]
    done = edgebuild("build", str(folder), "-t", "phone-12gb", "-o", out, *words)
    assert done.returncode == 0, done.stderr
    model = json.loads(done.stdout)
    assert model["proof"]["evidence"] == "measured"
    assert "report.html" in model["files"]
    assert "nats of KL" in done.stderr
    benched = edgebuild("bench", out, "--prompt", "16", "--new", "8", "--json")
    assert benched.returncode == 0, benched.stderr
    rates = json.loads(benched.stdout)["devices"][0]["rates"]
    assert {row["test"] for row in rates["rows"]} == {"pp16", "tg8"}
    assert "modelled-bound" in benched.stderr
    verified = edgebuild("verify", out, "--json")
    assert verified.returncode == 0
    assert json.loads(verified.stdout)["replay"]["relative_error"] < 1e-3
    assert "golden logits within" in verified.stderr
    other = tmp_path / "dist" / "golden.json"
    other.write_text(other.read_text().replace('"limit": 0.1', '"limit": 0.2'))
    assert edgebuild("verify", out).returncode == 2
    assert edgebuild("build", str(folder), "-t", "phone-12gb", "-o", out, *words).returncode == 0
    assert json.loads(edgebuild("explain", out, "--json").stdout)["proof"] == model["proof"]
    strict = edgebuild("build", str(folder), "-t", "phone-12gb", "-o", out, *words, "--strict")
    assert strict.returncode == 3
    assert "memory was not measured on the target" in strict.stderr
    talk = edgebuild("chat", out, "--once", "the cat", "--most", "5")
    assert talk.returncode == 0, talk.stderr
    assert talk.stdout.strip()


def test_options_of_other_networks_are_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny")
    done = edgebuild("build", str(folder), "-t", "phone-12gb", "--minutes", "3", "--latency", "9ms")
    assert done.returncode == 2
    assert "--latency, --minutes are not for language models" in done.stderr
    both = edgebuild(
        "build", str(folder), "-t", "phone-12gb", "--format", "onnx", "--format", "tflite"
    )
    assert both.returncode == 2
    assert "a language model's bundle has one format" in both.stderr
    other = edgebuild("build", "digits.py", "-t", "phone-12gb", "--context", "64")
    assert other.returncode == 2
    assert "--context is not for this kind of network" in other.stderr


def test_model_that_is_too_large_is_refused_with_arithmetic(tmp_path: Path) -> None:
    folder = tmp_path / "big"
    folder.mkdir()
    shutil.copyfile(CONFIGS / "deepseek-r1.json", folder / "config.json")
    out = str(tmp_path / "dist")
    done = edgebuild("build", str(folder), "-t", "phone-12gb", "-o", out)
    assert done.returncode == 2
    assert "deepseek_v3 is planned and converted, and no graph is made of it" in done.stderr
    shutil.copyfile(CONFIGS / "llama-3-8b.json", folder / "config.json")
    words = ["--weights", "fp16", "-o", out]
    done = edgebuild("build", str(folder), "-t", "phone-12gb", *words)
    assert done.returncode == 3
    assert "fewer bits" in done.stderr
    assert not (tmp_path / "dist").exists()
