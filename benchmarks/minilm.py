"""all-MiniLM-L6-v2 in plain PyTorch layers: one vector for a sentence of fixed length."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

WORDS, WIDTH, HIDDEN, HEADS, LAYERS = 30522, 384, 1536, 12, 6
# Large enough that softmax gives a masked word nothing, and still a number in 16 bits.
MASKED = -10000.0
# Our names of the parts of a layer, and the published ones.
PARTS = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "after_attention": "attention.output.LayerNorm",
    "expand": "intermediate.dense",
    "project": "output.dense",
    "after_project": "output.LayerNorm",
}


class SentenceEncoder(nn.Module):
    """A BERT encoder (Devlin et al. 2019) and the mean over its words, of length one.

    Ids and mask, (batch, length) int64 with a mask of 1 for words and 0 for padding, become
    embeddings, (batch, 384): their dot product is the similarity of two sentences, -1 to 1.

    Args:
        length: the longest sentence, in tokens.
    """

    def __init__(self, length: int, layers: int = LAYERS) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.positions = nn.Embedding(length, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.layers = nn.ModuleList(EncoderLayer() for _ in range(layers))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        tokens = self.norm(self.words(ids) + self.positions(places))
        counts = mask[:, :, None].to(tokens.dtype)
        penalty = (1 - mask[:, None, None, :].to(tokens.dtype)) * MASKED
        for layer in self.layers:
            tokens = layer(tokens, penalty)
        return functional.normalize((tokens * counts).sum(1) / counts.sum(1))


class EncoderLayer(nn.Module):
    """Attention, then two linear layers; a shortcut and a LayerNorm after each."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = SelfAttention()
        self.after_attention = nn.LayerNorm(WIDTH, eps=1e-12)
        self.expand = nn.Linear(WIDTH, HIDDEN)
        self.activation = nn.GELU()
        self.project = nn.Linear(HIDDEN, WIDTH)
        self.after_project = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, tokens: Tensor, penalty: Tensor) -> Tensor:
        tokens = self.after_attention(tokens + self.attention(tokens, penalty))
        changes = self.project(self.activation(self.expand(tokens)))
        after: Tensor = self.after_project(tokens + changes)
        return after


class SelfAttention(nn.Module):
    """Every word looks at every other word, in `heads` ways at once."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor, penalty: Tensor) -> Tensor:
        query, key, value = (
            layer(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        looks = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + penalty).softmax(-1)
        mixed: Tensor = self.output((looks @ value).transpose(1, 2).flatten(2))
        return mixed


def pretrained(weights: Path, length: int) -> SentenceEncoder:
    """The published encoder, in eval mode, from a file model.safetensors."""
    published = load_file(weights)
    encoder = SentenceEncoder(length)
    embeddings = {
        "words.weight": published["embeddings.word_embeddings.weight"],
        # All words are of the first segment, so its vector is part of every position's.
        "positions.weight": published["embeddings.position_embeddings.weight"][:length]
        + published["embeddings.token_type_embeddings.weight"][0],
        "norm.weight": published["embeddings.LayerNorm.weight"],
        "norm.bias": published["embeddings.LayerNorm.bias"],
    }
    layers = {
        f"layers.{layer}.{ours}.{kind}": published[f"encoder.layer.{layer}.{theirs}.{kind}"]
        for layer in range(LAYERS)
        for ours, theirs in PARTS.items()
        for kind in ("weight", "bias")
    }
    encoder.load_state_dict(embeddings | layers)
    return encoder.eval()


def tokenized(file: Path, sentences: list[str], length: int) -> tuple[Tensor, Tensor]:
    """Ids and mask of sentences, (count, length) int64: cut or padded to one length.

    Args:
        file: the published tokenizer.json.
    """
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    encodings = tokenizer.encode_batch(sentences)
    ids = torch.tensor([encoding.ids for encoding in encodings])
    mask = torch.tensor([encoding.attention_mask for encoding in encodings])
    return ids, mask
