"""Trains small decoders on a text, and writes one as llama.cpp's converter would."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from edgebuild.llm.gguf import ENDS, IN_LAYER
from edgebuild.llm.sequences import sequences_of
from edgebuild.llm.text import STRETCH, TOKENIZER, open_tokenizer
from edgebuild.methods._distill_data import batch_numbers
from edgebuild.methods._distill_train import rate_at
from edgebuild.vocabulary.contracts import Progress

# The last tenth of a text is seen by nothing before it proves.
PROVING_PART = 0.1
RATE, BATCH = 3e-3, 8
# The norm before the feed-forward part has a name of its own there.
NORMS = {"post_attention_layernorm": "ffn_norm"}


@dataclass(frozen=True)
class Scale:
    """How large the networks are, and how long they learn: a few minutes a seed on two cores."""

    hidden: int = 192
    layers: int = 5
    heads: int = 4
    ffn: int = 512
    vocabulary: int = 2048
    steps: int = 240
    distilled: int = 100

    @property
    def config(self) -> LlamaConfig:
        return LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.ffn,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads // 2,
            vocab_size=self.vocabulary,
            max_position_embeddings=2 * STRETCH,
            tie_word_embeddings=True,
        )


def divided(text: Path, folder: Path) -> tuple[Path, Path]:
    """What is learned, and what proves."""
    written = text.read_text(encoding="utf-8")
    at = round(len(written) * (1 - PROVING_PART))
    files = folder / "learned.txt", folder / "proving.txt"
    for file, part in zip(files, (written[:at], written[at:]), strict=True):
        file.write_text(part, encoding="utf-8")
    return files


def write_tokenizer(text: Path, folder: Path, scale: Scale) -> None:
    """Byte-level BPE, as GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=scale.vocabulary, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train([str(text)], trainer)
    tokenizer.save(str(folder / TOKENIZER))


def train(out: Path, text: Path, scale: Scale, seed: int, progress: Progress) -> None:
    """A network that has read the text, as transformers saves it."""
    tokenizer = open_tokenizer(text.parent)
    assert tokenizer is not None
    tokens = tokenizer.tokens(text.read_text(encoding="utf-8"))
    rows = torch.from_numpy(sequences_of(tokens, STRETCH, len(tokens), None))
    torch.manual_seed(seed)
    network = LlamaForCausalLM(scale.config)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.1)
    with progress.step(f"train a teacher, seed {seed}", scale.steps) as bar:
        for step in range(scale.steps):
            some = rows[batch_numbers(step, BATCH, len(rows), seed)]
            for group in optimizer.param_groups:
                group["lr"] = RATE * rate_at(step, scale.steps)
            loss = network(input_ids=some, labels=some).loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            bar.advance(f"{loss.item():.3f} nats")
    network.save_pretrained(out)
    shutil.copyfile(text.parent / TOKENIZER, out / TOKENIZER)


def write_gguf(folder: Path, out: Path) -> None:
    """The floats of what `train` has written, with llama.cpp's names, and its order of heads."""
    network = LlamaForCausalLM.from_pretrained(folder)
    config, head = network.config, network.config.hidden_size // network.config.num_attention_heads
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads or config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head)
    writer.add_vocab_size(config.vocab_size)
    # Tokens come and go as numbers.
    writer.add_tokenizer_model("none")
    for name, tensor in network.model.state_dict().items():
        weights = tensor.numpy()
        if "q_proj" in name or "k_proj" in name:
            halves = weights.reshape(-1, 2, head // 2, weights.shape[1])
            weights = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weights.shape)
        writer.add_tensor(_name_in_gguf(f"model.{name}"), weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _name_in_gguf(name: str) -> str:
    module, _, rest = name.rpartition(".")
    ends = {ours: theirs for theirs, ours in ENDS.items()}
    if module in ends:
        return f"{ends[module]}.{rest}"
    _, _, layer, part = module.split(".", 3)
    # Those that other families call so come last.
    parts = {ours: theirs for theirs, ours in reversed(IN_LAYER.items())}
    return f"blk.{layer}.{NORMS.get(part) or parts[part]}.{rest}"
