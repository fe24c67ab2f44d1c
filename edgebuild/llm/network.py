"""What a decoder computes, beside its matrices: rotations, windows, activations, caps.

Both the graph and the streamed reference are built from this, and from nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from edgebuild.llm._kernels_numpy import Floats
from edgebuild.llm.checkpoint import Checkpoint
from edgebuild.llm.config import EMBEDDING, FAMILIES, HEAD, Settings, completed, kind_of
from edgebuild.vocabulary.decoder import Decoder
from edgebuild.vocabulary.errors import InvalidCheckpoint, NotExportable

# Families whose attention and feed-forward parts are those of Llama, with what is told here.
COMPUTED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gemma3")
SLIDING = "sliding_attention"
# What configuration classes have by default, where families differ.
THETA, LOCAL_THETA, GEMMA_3_THETA = 1e4, 1e4, 1e6
WINDOW = 4096
GEMMA_2_CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
GEMMA_SCALAR = 256


class Activation(StrEnum):
    """The function of the gate."""

    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"


ACTIVATIONS: Mapping[str, Activation] = {
    **{"silu": Activation.SILU, "swish": Activation.SILU, "gelu": Activation.GELU},
    **{"gelu_pytorch_tanh": Activation.GELU_TANH, "gelu_new": Activation.GELU_TANH},
}


@dataclass(frozen=True)
class Rotation:
    """How positions turn pairs of a head's elements (RoFormer, arXiv 2104.09864).

    `factor` slows all turns down (linear), or those alone that are longer than the context that
    the model was trained for, with a smooth passage between (Llama 3.1).
    """

    theta: float
    factor: float = 1.0
    low: float = 0.0
    high: float = 0.0
    trained_for: int = 0

    def frequencies(self, head: int) -> Floats:
        """Radians a position, one for each pair: [head / 2]."""
        plain = self.theta ** -(np.arange(0, head, 2, dtype=np.float64) / head)
        if not self.trained_for:
            return (plain / self.factor).astype(np.float32)
        turns = self.trained_for * plain / (2 * math.pi)
        share = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return (plain * (share + (1 - share) / self.factor)).astype(np.float32)

    def tables(self, head: int, positions: int) -> tuple[Floats, Floats]:
        """Cosines and sines, each [positions, head / 2]."""
        angles = np.outer(np.arange(positions, dtype=np.float32), self.frequencies(head))
        return np.cos(angles), np.sin(angles)


@dataclass(frozen=True)
class Network:
    """How a decoder's tensors are put together.

    Attributes:
        head: elements of one attention head.
        scale: what scores are multiplied with before the softmax.
        score_cap: scores pass cap · tanh(x / cap); None where they do not.
        logit_cap: likewise for logits.
        rotations: of each layer.
        windows: how many tokens each layer looks back on, its own included; None for all.
        after_attention: the norm of what attention adds; empty where there is none. `after_feed`
            likewise, and `before_feed` is the feed-forward part's own.
    """

    decoder: Decoder
    head: int
    heads: int
    cached_heads: int
    epsilon: float
    activation: Activation
    embedding_scale: float
    scale: float
    score_cap: float | None
    logit_cap: float | None
    rotations: tuple[Rotation, ...]
    windows: tuple[int | None, ...]
    before_feed: str
    after_attention: str
    after_feed: str
    tensors: frozenset[str]

    @property
    def layers(self) -> range:
        return range(self.decoder.layers)

    @property
    def head_matrix(self) -> str:
        """What gives the logits: named as all matrices are, without its ending."""
        return (EMBEDDING if self.decoder.is_tied else HEAD).removesuffix(".weight")

    def has(self, name: str) -> bool:
        """Whether there is such a tensor: biases and norms of heads are not in all families."""
        return name in self.tensors


def read_network(checkpoint: Checkpoint) -> Network:
    """The network of a checkpoint.

    Raises:
        NotExportable: a family, an activation or a rotation that no graph is made of.
        InvalidCheckpoint: a setting that is no number.
    """
    where = str(checkpoint.path)
    kind = kind_of(checkpoint.settings, where)
    if kind not in COMPUTED:
        raise NotExportable(
            f"{where}: {kind} is planned and converted, and no graph is made of it; graphs are "
            f"made of {', '.join(COMPUTED)}"
        )
    return _Reader(completed(checkpoint.settings, where), kind, where).network(checkpoint.decoder)


def _query_outputs(decoder: Decoder) -> Iterator[int]:
    """Rows of the matrices that give queries, or of the second of their factors."""
    for each in decoder.weights:
        if each.name.endswith(("q_proj.weight", "q_proj.second.weight")):
            yield each.outputs


@dataclass(frozen=True)
class _Reader:
    """Asks settings for what a network needs, each checked when it is asked for."""

    settings: Settings
    kind: str
    where: str

    def network(self, decoder: Decoder) -> Network:
        heads = decoder.heads
        head = next(_query_outputs(decoder)) // heads
        scalar = self._number("query_pre_attn_scalar", GEMMA_SCALAR) if self._has_caps else head
        family = FAMILIES[self.kind]
        caps = GEMMA_2_CAPS if self.kind == "gemma2" else {}
        windows = tuple(self._windows(decoder.layers))
        return Network(
            decoder=decoder,
            head=head,
            heads=heads,
            cached_heads=decoder.cached // decoder.layers // 2 // head,
            epsilon=self._number("rms_norm_eps", 1e-6),
            activation=self._activation(),
            embedding_scale=math.sqrt(decoder.hidden) if self._is_gemma else 1.0,
            scale=scalar**-0.5,
            score_cap=self._cap("attn_logit_softcapping", caps),
            logit_cap=self._cap("final_logit_softcapping", caps),
            rotations=tuple(self._rotation(window is not None) for window in windows),
            windows=windows,
            before_feed=family.feed_norm,
            after_attention="post_attention_layernorm" if family.further_norms else "",
            after_feed="post_feedforward_layernorm" if family.further_norms else "",
            tensors=frozenset(name for each in decoder.weights for name, _ in each.names()),
        )

    @property
    def _is_gemma(self) -> bool:
        return self.kind.startswith("gemma")

    @property
    def _has_caps(self) -> bool:
        """Gemma 2 and later scale scores by a number of their own."""
        return self._is_gemma and self.kind != "gemma"

    def _number(self, key: str, default: float) -> float:
        value = self.settings.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise InvalidCheckpoint(f"{self.where}: {key} is {value!r}, not a number above zero")
        return float(value)

    def _cap(self, key: str, defaults: Mapping[str, float]) -> float | None:
        if self.settings.get(key, defaults.get(key)) is None:
            return None
        return self._number(key, defaults.get(key, 0.0))

    def _activation(self) -> Activation:
        name = self.settings.get("hidden_activation") or self.settings.get("hidden_act")
        if name is None or (self.kind == "gemma" and name == "gelu"):
            # Gemma's first files say "gelu", and meant the approximation.
            return Activation.GELU_TANH if self._is_gemma else Activation.SILU
        if str(name) not in ACTIVATIONS:
            raise NotExportable(f"{self.where}: no graph is made with the activation {name!r}")
        return ACTIVATIONS[str(name)]

    def _windows(self, layers: int) -> list[int | None]:
        """A window for each layer that slides."""
        window = self.settings.get("sliding_window", self._default_window)
        if window is None or not self._may_slide:
            return [None] * layers
        size = int(self._number("sliding_window", WINDOW))
        return [size if slides else None for slides in self._slides(layers)]

    @property
    def _default_window(self) -> int | None:
        return WINDOW if self.kind in ("mistral", "gemma2", "gemma3_text", "gemma3") else None

    @property
    def _may_slide(self) -> bool:
        if self.kind.startswith("qwen"):
            return bool(self.settings.get("use_sliding_window"))
        return self.kind not in ("llama", "gemma")

    def _slides(self, layers: int) -> list[bool]:
        types = self.settings.get("layer_types")
        if isinstance(types, list) and len(types) == layers:
            return [kind == SLIDING for kind in types]
        if self.kind.startswith("qwen"):
            first = int(self._number("max_window_layers", 28))
            return [layer >= first for layer in range(layers)]
        if self.kind == "mistral":
            return [True] * layers
        every = 2 if self.kind == "gemma2" else int(self._number("sliding_window_pattern", 6))
        return [bool((layer + 1) % every) for layer in range(layers)]

    def _rotation(self, slides: bool) -> Rotation:
        """Settings of today name rotations by kinds of layers; older ones have two keys."""
        given = self.settings.get("rope_parameters")
        if isinstance(given, dict) and "full_attention" in given:
            given = given[SLIDING if slides else "full_attention"]
        is_gemma_3 = self.kind.startswith("gemma3")
        if is_gemma_3 and slides:
            plain, scaling = self._number("rope_local_base_freq", LOCAL_THETA), None
        else:
            plain = self._number("rope_theta", GEMMA_3_THETA if is_gemma_3 else THETA)
            scaling = self.settings.get("rope_scaling")
        told = given if isinstance(given, dict) else scaling if isinstance(scaling, dict) else {}
        inner = _Reader(told, self.kind, self.where)
        theta = inner._number("rope_theta", plain)
        if inner._number("partial_rotary_factor", 1.0) != 1.0:
            raise NotExportable(f"{self.where}: no graph is made with a part of a head turned")
        match told.get("rope_type", told.get("type", "default")):
            case "default":
                return Rotation(theta)
            case "linear":
                return Rotation(theta, inner._number("factor", 1.0))
            case "llama3":
                return Rotation(
                    theta,
                    inner._number("factor", 8.0),
                    inner._number("low_freq_factor", 1.0),
                    inner._number("high_freq_factor", 4.0),
                    int(inner._number("original_max_position_embeddings", 8192)),
                )
            case other:
                raise NotExportable(
                    f"{self.where}: no graph is made with rotations of the type {other!r}; known "
                    "are default, linear and llama3"
                )
