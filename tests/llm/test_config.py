"""Shapes from config.json are those of the real models, and broken files are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from edgebuild.llm.config import FAMILIES, load_decoder, read_decoder
from edgebuild.llm.siblings import known_models, smaller_siblings
from edgebuild.vocabulary.decoder import Role
from edgebuild.vocabulary.errors import InvalidCheckpoint

CONFIGS = Path(__file__).parent / "configs"

BILLIONS = {
    "llama-3-8b": 8.030,
    "qwen2.5-7b": 7.616,
    "deepseek-r1": 671.03,
    "mixture-1.8t": 1799.3,
}


@pytest.mark.parametrize("name", BILLIONS)
def test_the_parameters_are_those_of_the_published_model(name: str) -> None:
    decoder = load_decoder(CONFIGS / f"{name}.json")
    assert decoder.parameters / 1e9 == pytest.approx(BILLIONS[name], rel=2e-4)


def test_deepseek_reads_37_billion_of_its_671_for_a_token() -> None:
    # With the embedding, of which a token reads one row, it is published as 37 B.
    decoder = load_decoder(CONFIGS / "deepseek-r1.json")
    embedding = next(w for w in decoder.weights if w.role is Role.EMBEDDING)
    read = decoder.active_parameters + embedding.elements
    assert read / 1e9 == pytest.approx(37.55, abs=0.02)


REFUSED = {
    "unknown-model-type": "Did you mean 'llama'?",
    "no-model-type": "names no model_type",
    "no-layers": "num_hidden_layers is missing",
    "negative-width": "hidden_size is -8, not a count above zero",
    "width-in-quotes": "hidden_size is '8'",
    "more-active-than-experts": "num_experts_per_tok is 3, more than 2 experts",
    "a-list": "holds a list",
    "not-json": "cannot be read",
    "not-there": "is not there",
}


@pytest.mark.parametrize("name", REFUSED)
def test_broken_configurations_are_refused(name: str) -> None:
    with pytest.raises(InvalidCheckpoint, match=REFUSED[name].replace("?", "[?]")) as caught:
        load_decoder(CONFIGS / f"{name}.json")
    assert name in str(caught.value)


def test_a_folder_without_config_is_told_what_is_taken(tmp_path: Path) -> None:
    with pytest.raises(InvalidCheckpoint, match=r"no config.json: give a folder .* llama, mistral"):
        load_decoder(tmp_path)


def test_every_model_of_the_table_adds_up_to_what_its_page_says() -> None:
    for model in known_models():
        assert model.decoder.parameters == pytest.approx(model.published, rel=0.01)
        assert model.source


def test_what_was_distilled_from_a_model_comes_before_its_other_relatives() -> None:
    found = list(smaller_siblings(load_decoder(CONFIGS / "deepseek-r1.json")))
    assert found[0].decoder.name == "DeepSeek-R1-Distill-Llama-70B"
    assert found[0].relation == "a model distilled from it"
    relations = [sibling.relation for sibling in found]
    assert sorted(relations, key=relations.index) == relations


def test_a_model_has_the_siblings_of_its_lineage_and_not_of_a_twin_in_shape() -> None:
    found = list(smaller_siblings(load_decoder(CONFIGS / "llama-3-8b.json")))
    close = [each.decoder.name for each in found if each.relation == "a smaller sibling"]
    assert close == ["Llama-3.2-3B", "Llama-3.2-1B"]


TINY = {
    **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "vocab_size": 128},
    "num_attention_heads": 4,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
FURTHER: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
    "mistral": {"num_key_value_heads": 2},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 3},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3_moe": {"num_key_value_heads": 2, "num_local_experts": 8, **EXPERTS},
    "gemma": {"num_key_value_heads": 1},
    "gemma2": {},
    "gemma3_text": {},
    "deepseek_v2": {"first_k_dense_replace": 1, **EXPERTS},
    "deepseek_v3": {"n_routed_experts": 16, **EXPERTS},
}


@pytest.mark.parametrize("kind", FURTHER)
def test_every_tensor_has_the_shape_that_transformers_gives_it(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(kind, **TINY, **FURTHER[kind])
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    decoder = read_decoder(config.to_diff_dict() | {"model_type": kind}, kind, kind)
    found = {name: each.shape for each in decoder.weights for name, _ in each.names()}
    assert sum(map(_elements, found.values())) == decoder.parameters
    # In memory, transformers fuses experts and shows a tied head twice.
    expected = {n: s for n, s in expected.items() if n in found}
    assert {n: found[n] for n in expected} == expected
    fused = sum(n not in expected for n in found)
    assert fused == 0 or "experts" in " ".join(found)
    buffers = sum(b.numel() for n, b in model.named_buffers() if n in found)
    assert decoder.parameters == sum(p.numel() for p in model.parameters()) + buffers


def test_every_known_family_is_compared() -> None:
    # "gemma3" is the text part of a multimodal checkpoint, under its outer name.
    assert FURTHER.keys() | {"gemma3"} == FAMILIES.keys()


def test_the_text_part_of_a_multimodal_checkpoint_is_read() -> None:
    text = {**TINY, "model_type": "gemma3_text"}
    decoder = read_decoder({"model_type": "gemma3", "text_config": text}, "g", "g")
    assert decoder.is_tied
    assert decoder.layers == 4


def _elements(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) > 1 else 1)
