"""Makes small random checkpoints, in one file or in shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from edgebuild.llm.config import read_decoder

TINY: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 256,
}


def random_tensors(
    config: Mapping[str, Any], dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Heavy-tailed weights, as trained ones are, under the names of the family."""
    drawn = torch.Generator().manual_seed(seed)
    tensors = {}
    for weights in read_decoder(config, "tiny", "tiny").weights:
        for name, _ in weights.names():
            values = torch.randn(weights.shape, generator=drawn)
            tail = torch.randn(weights.shape, generator=drawn).abs() + 0.2
            tensors[name] = (values / tail * 0.05).to(dtype)
    return tensors


def write_checkpoint(
    folder: Path,
    config: Mapping[str, Any] = TINY,
    tensors: Mapping[str, torch.Tensor] | None = None,
    shards: int = 1,
) -> Path:
    """A folder as save_pretrained leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = tensors if tensors is not None else random_tensors(config)
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors")
        return folder
    names = [f"model-{n + 1:05}-of-{shards:05}.safetensors" for n in range(shards)]
    where = {name: names[i % shards] for i, name in enumerate(tensors)}
    for file in names:
        save_file({n: tensors[n] for n in tensors if where[n] == file}, folder / file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
