"""Graphs and the streamed reference compute what transformers does, family by family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from llm.checkpoints import write_random_network
from llm.test_convert import Silence

from edgebuild import generate
from edgebuild.generate import Decoder
from edgebuild.llm.calibrate import calibrate
from edgebuild.llm.checkpoint import load_checkpoint
from edgebuild.llm.convert import convert
from edgebuild.llm.forward import Forward
from edgebuild.llm.graph import HALVES, CacheFormat, Logits, decoder_graph, write_graph
from edgebuild.llm.mix import Mix
from edgebuild.llm.network import read_network
from edgebuild.llm.store import DATA, load_index
from edgebuild.vocabulary.errors import InvalidCheckpoint, NotExportable

CONTEXT, TOKENS = 64, 40
# Keys and values are kept as halves.
CLOSE = 5e-3
LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama 3": {"kind": "llama", "rope_scaling": LLAMA_3, "tie_word_embeddings": True},
    "llama, biased": {"kind": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 7},
    "qwen2": {},
    "qwen2, sliding": {
        **{"kind": "qwen2", "use_sliding_window": True, "sliding_window": 7},
        "max_window_layers": 2,
    },
    "qwen3": {"head_dim": 32},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 7, "query_pre_attn_scalar": 24},
    "gemma3_text": {
        **{"head_dim": 16, "sliding_window": 7, "sliding_window_pattern": 2},
        "query_pre_attn_scalar": 24,
    },
}


def tokens(seed: int = 1) -> np.ndarray:
    drawn = torch.Generator().manual_seed(seed)
    return torch.randint(0, 96, (1, TOKENS), generator=drawn).numpy()


def packed(folder: Path, mix: str, logits: Logits, cache: CacheFormat = HALVES) -> Decoder:
    checkpoint = load_checkpoint(folder)
    done = convert(checkpoint, folder / mix, Mix.parse(mix), Silence())
    graph = decoder_graph(read_network(checkpoint), done.index, CONTEXT, cache, logits)
    write_graph(graph, folder / mix / f"{logits}.onnx")
    return Decoder(str(folder / mix / f"{logits}.onnx"))


@pytest.mark.parametrize("family", FAMILIES)
def test_graph_and_reference_are_the_network(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "CHUNK", 16)
    settings = {"kind": family, **FAMILIES[family]}
    model, ids = write_random_network(tmp_path, **settings), tokens()
    with torch.no_grad():
        wanted = model(torch.from_numpy(ids)).logits[0].numpy()
    every = packed(tmp_path, "fp32", Logits.ALL).read(ids[0].tolist())
    assert np.abs(every - wanted).max() < CLOSE
    last = packed(tmp_path, "fp32", Logits.LAST)
    last.read(ids[0, :-1].tolist())
    assert np.abs(last.read(ids[0, -1:].tolist()) - wanted[-1]).max() < CLOSE
    checkpoint = load_checkpoint(tmp_path)
    forward = Forward(checkpoint, read_network(checkpoint))
    states = forward.states(ids, Silence())
    assert np.abs(forward.logits(states[0]) - wanted).max() < 1e-4


@pytest.mark.parametrize(
    ("mix", "most"),
    [("fp16", 0.01), ("int8", 0.3), ("int4-g16-asym", 3.0), ("int4-g32+int8-head", 3.0)],
)
def test_packed_weights_run_and_lose_as_much_as_bits_do(
    mix: str, most: float, tmp_path: Path
) -> None:
    ids = tokens()
    write_random_network(tmp_path, "llama", tie_word_embeddings=True)
    checkpoint = load_checkpoint(tmp_path)
    forward = Forward(checkpoint, read_network(checkpoint))
    wanted = forward.logits(forward.states(ids, Silence())[0])
    found = packed(tmp_path, mix, Logits.ALL).read(ids[0].tolist())
    off = np.abs(found - wanted).max()
    assert 0 < off < most


def test_cache_of_eight_bits_is_near_that_of_halves(tmp_path: Path) -> None:
    ids = tokens()
    write_random_network(tmp_path, "llama")
    checkpoint = load_checkpoint(tmp_path)
    forward = Forward(checkpoint, read_network(checkpoint))
    seen = calibrate(forward, ids, Silence())
    halves = packed(tmp_path, "fp32", Logits.ALL).read(ids[0].tolist())
    eight = packed(tmp_path, "fp32", Logits.ALL, CacheFormat(seen.cache_scales))
    found = eight.read(ids[0].tolist())
    assert 0 < np.abs(found - halves).max() < 0.1 * np.abs(halves).max()


def test_a_cache_is_never_converted_as_a_whole(tmp_path: Path) -> None:
    """Its buffers are as long as the context: each token would take as long as all of them."""
    write_random_network(tmp_path, "llama")
    packed(tmp_path, "int4-g16", Logits.LAST)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    file = tmp_path / "int4-g16" / f"{Logits.LAST}.onnx"
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    attentions = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    assert len(attentions) == 4
    for layer, node in enumerate(attentions):
        parts = ("key", "value")
        assert list(node.input[3:5]) == [f"past_key_values.{layer}.{part}" for part in parts]
        assert list(node.output[1:3]) == [f"present.{layer}.{part}" for part in parts]


def test_importances_are_the_mean_squares_of_inputs(tmp_path: Path) -> None:
    model, ids = write_random_network(tmp_path, "llama"), tokens()
    seen_by_torch = {}
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_pre_hook(
                lambda _, inputs, name=name: seen_by_torch.update({f"{name}.weight": inputs[0]})
            )
    with torch.no_grad():
        model(torch.from_numpy(ids))
    checkpoint = load_checkpoint(tmp_path)
    seen = calibrate(Forward(checkpoint, read_network(checkpoint)), ids, Silence())
    assert seen.importances.keys() == seen_by_torch.keys()
    for name, inputs in seen_by_torch.items():
        wanted = inputs.square().mean(dim=(0, 1)).numpy()
        assert np.allclose(seen.importances[name], wanted, rtol=1e-3, atol=1e-6)


def test_logits_of_all_tokens_are_of_all_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "CHUNK", TOKENS - 1)
    write_random_network(tmp_path, "llama")
    assert packed(tmp_path, "int8", Logits.ALL).read(tokens()[0].tolist()).shape == (TOKENS, 96)


def test_conversation_is_forgotten(tmp_path: Path) -> None:
    write_random_network(tmp_path, "llama")
    decoder, ids = packed(tmp_path, "int8", Logits.LAST), tokens()[0].tolist()
    first = decoder.read(ids)
    decoder.forget()
    assert np.array_equal(decoder.read(ids), first)
    with pytest.raises(ValueError, match="built for 64"):
        decoder.read(ids)


def test_weights_stay_where_they_are(tmp_path: Path) -> None:
    write_random_network(tmp_path, "llama", tie_word_embeddings=True)
    packed(tmp_path, "int4-g32", Logits.LAST)
    model = onnx.load(str(tmp_path / "int4-g32" / "last.onnx"), load_external_data=False)
    places = {each.name: {one.key: one.value for one in each.external_data}
              for each in model.graph.initializer if each.external_data}  # fmt: skip
    assert {each["location"] for each in places.values()} == {DATA}
    entries = load_index(tmp_path / "int4-g32").entries
    offsets = {piece.offset for entry in entries for piece in entry.pieces}
    assert {int(each["offset"]) for each in places.values()} == offsets
    kinds = {node.op_type for node in model.graph.node}
    assert {"GatherBlockQuantized", "MatMulNBits", "GroupQueryAttention"} <= kinds


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"hidden_act": "relu"}, "'relu'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "part of a head"),
    ],
)
def test_what_no_graph_is_made_of_is_named(
    settings: dict[str, Any], says: str, tmp_path: Path
) -> None:
    from llm.checkpoints import TINY, write_checkpoint

    checkpoint = load_checkpoint(write_checkpoint(tmp_path, {**TINY, **settings}))
    with pytest.raises(NotExportable, match=says):
        read_network(checkpoint)


def test_settings_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    from llm.checkpoints import TINY, write_checkpoint

    checkpoint = load_checkpoint(write_checkpoint(tmp_path, {**TINY, "rms_norm_eps": "small"}))
    with pytest.raises(InvalidCheckpoint, match="rms_norm_eps is 'small'"):
        read_network(checkpoint)


def test_mixtures_of_experts_are_refused(tmp_path: Path) -> None:
    from llm.checkpoints import TINY, write_checkpoint

    config = {**TINY, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    checkpoint = load_checkpoint(write_checkpoint(tmp_path, config))
    with pytest.raises(NotExportable, match="mixtral is planned and converted, and no graph"):
        read_network(checkpoint)
