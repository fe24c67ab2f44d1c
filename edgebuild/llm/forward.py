"""Runs the float network on text, a matrix at a time, straight from the checkpoint.

This is what a converted model is compared with, and where it is seen how much each input counts.
Memory holds the tokens' activations and a piece of one matrix, whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from scipy.special import erf

from edgebuild.llm._kernels_numpy import Floats
from edgebuild.llm.checkpoint import Checkpoint
from edgebuild.llm.config import EMBEDDING, LAST_NORM
from edgebuild.llm.network import Activation, Network
from edgebuild.llm.quantize import dequantize, quantize
from edgebuild.llm.rows import open_rows, read_vector
from edgebuild.llm.sequences import Tokens
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.weight_format import WeightFormat

# Weights that are read at once, and tokens that pass a layer at once.
CHUNK = 2**22
GROUP = 1024


class Watch(Protocol):
    """Is shown what flows through a network."""

    def multiplied(self, name: str, inputs: Floats) -> None:
        """The inputs [tokens, inputs] that a matrix is multiplied with."""

    def cached(self, layer: int, keys: Floats, values: Floats) -> None:
        """Keys and values [tokens, heads, head] as the cache keeps them."""

    def passed(self, layer: int, before: Floats, after: Floats) -> None:
        """What a layer reads and what it leaves, [sequences, tokens, hidden]."""


class Blind:
    """Looks at nothing."""

    def multiplied(self, name: str, inputs: Floats) -> None:
        pass

    def cached(self, layer: int, keys: Floats, values: Floats) -> None:
        pass

    def passed(self, layer: int, before: Floats, after: Floats) -> None:
        pass


@dataclass(frozen=True)
class Forward:
    """A checkpoint's network, run in floats of four bytes.

    `rounded` matrices are rounded as they are read: what their formats lose, without a runtime.
    """

    checkpoint: Checkpoint
    network: Network
    rounded: Mapping[str, WeightFormat] = field(default_factory=dict)

    def states(self, sequences: Tokens, progress: Progress, watch: Watch | None = None) -> Floats:
        """What the head is multiplied with, [sequences, tokens, hidden].

        Raises:
            InvalidCheckpoint: a tensor that cannot be read.
        """
        watch = watch or Blind()
        count, length = sequences.shape
        at_once = max(1, GROUP // length)
        states = self._embedded(sequences)
        with progress.step("run the float network", self.network.decoder.layers) as bar:
            for layer in self.network.layers:
                for first in range(0, count, at_once):
                    some = slice(first, first + at_once)
                    passed = self._layer(layer, states[some], watch)
                    watch.passed(layer, states[some], passed)
                    states[some] = passed
                bar.advance()
        normed = self._normed(LAST_NORM, states)
        watch.multiplied(f"{self.network.head_matrix}.weight", normed.reshape(-1, normed.shape[-1]))
        return normed

    def logits(self, states: Floats) -> Floats:
        """[tokens, vocabulary], of states [tokens, hidden]."""
        return _capped(self._times(self.network.head_matrix, states), self.network.logit_cap)

    # ---- one layer

    def _embedded(self, sequences: Tokens) -> Floats:
        """Rows of the embedding, each token's read once."""
        wanted, places = np.unique(sequences, return_inverse=True)
        found = np.empty((len(wanted), self.network.decoder.hidden), np.float32)
        with open_rows(EMBEDDING, self.checkpoint.tensors) as rows:
            for at, token in enumerate(wanted):
                rows.read(int(token), found[at : at + 1])
        self._round(EMBEDDING, found)
        scaled = found * np.float32(self.network.embedding_scale)
        return scaled[places.reshape(sequences.shape)]

    def _layer(self, layer: int, states: Floats, watch: Watch) -> Floats:
        network, at = self.network, f"model.layers.{layer}."
        added = self._attention(layer, self._normed(f"{at}input_layernorm.weight", states), watch)
        if network.after_attention:
            added = self._normed(f"{at}{network.after_attention}.weight", added)
        states = states + added
        added = self._feed(at, self._normed(f"{at}{network.before_feed}.weight", states), watch)
        if network.after_feed:
            added = self._normed(f"{at}{network.after_feed}.weight", added)
        return states + added

    def _feed(self, at: str, normed: Floats, watch: Watch) -> Floats:
        gate = _activated(self._times(f"{at}mlp.gate_proj", normed, watch), self.network.activation)
        gate *= self._times(f"{at}mlp.up_proj", normed, watch)
        return self._times(f"{at}mlp.down_proj", gate, watch)

    def _attention(self, layer: int, normed: Floats, watch: Watch) -> Floats:
        network, at = self.network, f"model.layers.{layer}.self_attn."
        shape = (*normed.shape[:2], -1, network.head)
        query, key, value = (
            self._times(f"{at}{part}_proj", normed, watch).reshape(shape) for part in "qkv"
        )
        query = self._head_normed(f"{at}q_norm.weight", query)
        key = self._head_normed(f"{at}k_norm.weight", key)
        tables = network.rotations[layer].tables(network.head, normed.shape[1])
        query, key = _turned(query, *tables), _turned(key, *tables)
        for one in zip(key, value, strict=True):
            watch.cached(layer, *one)
        mixed = np.stack(
            [self._attended(layer, *one) for one in zip(query, key, value, strict=True)]
        )
        return self._times(f"{at}o_proj", mixed, watch)

    def _attended(self, layer: int, query: Floats, key: Floats, value: Floats) -> Floats:
        """One sequence's heads beside each other, [tokens, heads · head]."""
        network, length = self.network, len(query)
        shared = network.heads // network.cached_heads
        distances = np.arange(length)[:, None] - np.arange(length)
        seen = (distances >= 0) & (distances < (network.windows[layer] or length))
        found = np.empty((length, network.heads, network.head), np.float32)
        for head in range(network.heads):
            scores = query[:, head] @ key[:, head // shared].T * np.float32(network.scale)
            scores = _capped(scores, network.score_cap)
            scores[~seen] = -np.inf
            found[:, head] = _softmax(scores) @ value[:, head // shared]
        return found.reshape(length, -1)

    # ---- pieces

    def _normed(self, name: str, states: Floats) -> Floats:
        weight = read_vector(name, self.checkpoint.tensors)
        squares = np.square(states).mean(axis=-1, keepdims=True, dtype=np.float32)
        gain: Floats = weight + np.float32(self.network.decoder.norm_offset)
        found: Floats = states / np.sqrt(squares + np.float32(self.network.epsilon)) * gain
        return found

    def _head_normed(self, name: str, parts: Floats) -> Floats:
        return self._normed(name, parts) if self.network.has(name) else parts

    def _times(self, name: str, inputs: Floats, watch: Watch | None = None) -> Floats:
        """A matrix with its bias, if it has one; read a few rows at a time.

        Where two factors stand in its place, one after the other.
        """
        if f"{name}.second.weight" in self.checkpoint.tensors:
            thin = self._times(f"{name}.first", inputs, watch)
            found = self._times(f"{name}.second", thin, watch)
            return self._biased(name, found)
        flat = inputs.reshape(-1, inputs.shape[-1])
        if watch:
            watch.multiplied(f"{name}.weight", flat)
        with open_rows(f"{name}.weight", self.checkpoint.tensors) as rows:
            count = rows.shape[0]
            found = np.empty((len(flat), count), np.float32)
            for first, some in rows.chunks(CHUNK):
                self._round(f"{name}.weight", some)
                np.matmul(flat, some.T, out=found[:, first : first + len(some)])
        return self._biased(name, found).reshape(*inputs.shape[:-1], count)

    def _biased(self, name: str, found: Floats) -> Floats:
        if self.network.has(f"{name}.bias"):
            found += read_vector(f"{name}.bias", self.checkpoint.tensors)
        return found

    def _round(self, name: str, rows: Floats) -> None:
        if layout := self.rounded.get(name):
            rows[...] = dequantize(quantize(rows, layout), layout, rows.shape[1])


def in_chunks(count: int, size: int) -> Iterator[slice]:
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))


def log_softmax(logits: Floats) -> Floats:
    """Over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found


def divergence(wanted: Floats, got: Floats) -> Floats:
    """Nats of KL of each token, from logarithms of probabilities [tokens, vocabulary]."""
    found: Floats = np.sum(np.exp(wanted) * (wanted - got), axis=-1)
    return found


def _softmax(scores: Floats) -> Floats:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    found: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return found


def _capped(values: Floats, cap: float | None) -> Floats:
    if cap is None:
        return values
    found: Floats = np.tanh(values / np.float32(cap)) * np.float32(cap)
    return found


def _turned(parts: Floats, cosines: Floats, sines: Floats) -> Floats:
    """Each pair of elements half a head apart, turned by its position: [batch, tokens, heads, …]"""
    low, high = np.split(parts, 2, axis=-1)
    cosines, sines = cosines[:, None], sines[:, None]
    return np.concatenate([low * cosines - high * sines, high * cosines + low * sines], axis=-1)


def _activated(values: Floats, activation: Activation) -> Floats:
    match activation:
        case Activation.SILU:
            found = values / (1 + np.exp(-values))
        case Activation.GELU:
            found = values * (1 + erf(values / np.sqrt(np.float32(2)))) / 2
        case Activation.GELU_TANH:
            inner = np.sqrt(np.float32(2 / np.pi)) * (values + 0.044715 * values**3)
            found = values * (1 + np.tanh(inner)) / 2
    floats: Floats = found.astype(np.float32, copy=False)
    return floats
