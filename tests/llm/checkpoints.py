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


def write_random_network(folder: Path, kind: str, seed: int = 0, **settings: Any) -> Any:
    """A small network of a family, as transformers saves it; returns the network itself."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {key: value for key, value in TINY.items() if key != "model_type"}
    config = AutoConfig.for_model(kind, **{**sizes, "num_hidden_layers": 4, **settings})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()
    drawn = torch.Generator().manual_seed(seed)
    offset = 0.0 if kind.startswith("gemma") else 1.0
    with torch.no_grad():
        for name, values in model.named_parameters():
            spread = 0.1 if values.ndim > 1 else 0.3
            values.copy_(torch.randn(values.shape, generator=drawn) * spread)
            if name.endswith("norm.weight"):
                values += offset
    model.save_pretrained(folder)
    return model


WORDS = "the cat sat on the mat and the dog lay down by the fire while rain fell on the old town "


def write_tokenizer(folder: Path, template: str = "") -> Path:
    """A tokenizer trained on a sentence, with a token that begins texts and one that ends them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=96, special_tokens=["<s>", "</s>"])
    tokenizer.train_from_iterator([WORDS], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder


def write_text(file: Path, seed: int = 0) -> Path:
    """Enough words for calibration and proof, in an order of their own."""
    drawn = torch.Generator().manual_seed(seed)
    words = WORDS.split()
    picks = torch.randint(len(words), (2000,), generator=drawn)
    file.write_text(" ".join(words[int(pick)] for pick in picks))
    return file
