"""A teacher writes texts: as many as asked, none twice, and on from where it was cut off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from llm.checkpoints import write_random_network, write_tokenizer
from llm.test_convert import Silence

from edgebuild.inputs.target_file import load_target
from edgebuild.llm.build import Wanted, build_model
from edgebuild.llm.distill_data import Sampling, write_samples
from edgebuild.llm.mix import Mix
from edgebuild.vocabulary.errors import InputError, InvalidBundle, InvalidDestination

FEW = Sampling(count=6, tokens=8, temperature=1.0, seed=3)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    write_random_network(folder / "tiny", "llama", num_hidden_layers=1)
    write_tokenizer(folder / "tiny")
    wanted = Wanted(128, Mix.parse("int8"))
    target = load_target("phone-12gb")
    build_model(folder / "tiny", target, folder / "dist", wanted, Silence())
    return folder / "dist"


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_texts_are_written_and_none_twice(teacher: Path, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "samples.jsonl"
    prompts.write_text("the cat\n\nthe dog\n")
    assert write_samples(teacher, prompts, out, FEW, Silence()) == 6
    found = lines(out)
    assert {row["prompt"] for row in found} == {"the cat", "the dog"}
    assert len({(row["prompt"], row["text"]) for row in found}) == 6


def test_a_run_that_was_cut_off_goes_on_as_if_it_was_not(teacher: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    write_samples(teacher, None, whole, FEW, Silence())
    written = whole.read_bytes()
    third = written.splitlines(keepends=True)[:3]
    cut.write_bytes(b"".join(third)[:-7])
    assert write_samples(teacher, None, cut, FEW, Silence()) == 6
    assert cut.read_bytes() == written
    assert write_samples(teacher, None, cut, FEW, Silence()) == 6
    assert cut.read_bytes() == written


def test_a_teacher_that_only_repeats_itself_ends(teacher: Path, tmp_path: Path) -> None:
    greedy = Sampling(count=5, tokens=4, temperature=0.0)
    assert write_samples(teacher, None, tmp_path / "few.jsonl", greedy, Silence()) <= 1


def test_bad_input_is_named(teacher: Path, tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("my notes\nmore of them\n")
    with pytest.raises(InvalidDestination, match="something else than samples"):
        write_samples(teacher, None, other, FEW, Silence())
    assert other.read_text() == "my notes\nmore of them\n"
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(InputError, match="has no prompt"):
        write_samples(teacher, tmp_path / "empty.txt", tmp_path / "out", FEW, Silence())
    with pytest.raises(InvalidBundle, match="no language model's bundle"):
        write_samples(tmp_path, None, tmp_path / "out", FEW, Silence())
