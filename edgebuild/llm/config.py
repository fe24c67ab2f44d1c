"""Reads a decoder's shapes from the config.json of a Hugging Face checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgebuild.vocabulary.decoder import Decoder, Role, Weights
from edgebuild.vocabulary.errors import InvalidCheckpoint, did_you_mean, first_line

Settings = Mapping[str, object]

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
LAST_NORM = "model.norm.weight"
_LAYER = "model.layers.{layer}."
# A number beyond this is a slip, not a size; it also keeps hostile files from filling memory.
LARGEST = 10**9
MOST_LAYERS = 10_000


@dataclass(frozen=True)
class Family:
    """What the configurations of one model type leave unsaid.

    `defaults` are those of the configuration classes in transformers: files hold only what
    differs from them. A `{norm}` before the feed-forward part has its own name in Gemma.
    """

    defaults: Settings = field(default_factory=dict)
    has_qkv_bias: bool = False
    has_head_norms: bool = False
    feed_norm: str = "post_attention_layernorm"
    further_norms: tuple[str, ...] = ()
    norm_offset: float = 0.0


_UNTIED = {"tie_word_embeddings": False}
_GEMMA = {"tie_word_embeddings": True, "head_dim": 256}
_GEMMA_FEED = ("pre_feedforward_layernorm", ("post_feedforward_layernorm",))
_GEMMA_3 = Family(
    _GEMMA | {"vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4},
    False,
    True,
    "pre_feedforward_layernorm",
    ("post_attention_layernorm", "post_feedforward_layernorm"),
    1.0,
)
_GEMMA_2 = replace(_GEMMA_3, defaults=_GEMMA | {"vocab_size": 256000}, has_head_norms=False)
FAMILIES: Mapping[str, Family] = {
    "llama": Family(_UNTIED),
    "mistral": Family(_UNTIED | {"num_key_value_heads": 8}),
    "mixtral": Family(_UNTIED | {"num_key_value_heads": 8}),
    "qwen2": Family(_UNTIED, has_qkv_bias=True),
    "qwen3": Family(_UNTIED | {"head_dim": 128}, has_head_norms=True),
    "qwen3_moe": Family(_UNTIED, has_head_norms=True),
    "gemma": Family(_GEMMA, norm_offset=1.0),
    "gemma2": _GEMMA_2,
    "gemma3_text": _GEMMA_3,
    "gemma3": _GEMMA_3,
    "deepseek_v2": Family(_UNTIED),
    "deepseek_v3": Family(_UNTIED),
}
WHAT_IT_TAKES = (
    "give a folder with the config.json of a Hugging Face decoder (model_type "
    f"{', '.join(FAMILIES)})"
)


def load_decoder(checkpoint: Path) -> Decoder:
    """The decoder in a checkpoint's folder, or described by a config.json itself.

    Raises:
        InvalidCheckpoint: no such file, a model type that is not known, or impossible sizes.
    """
    file = checkpoint / "config.json" if checkpoint.is_dir() else checkpoint
    if not checkpoint.exists():
        raise InvalidCheckpoint(f"{checkpoint} is not there: {WHAT_IT_TAKES}")
    if not file.is_file():
        raise InvalidCheckpoint(f"{checkpoint} has no config.json: {WHAT_IT_TAKES}")
    name = file.resolve().parent.name if file.name == "config.json" else file.stem
    return read_decoder(read_settings(file), name, str(file))


def read_settings(file: Path) -> Settings:
    """A JSON object.

    Raises:
        InvalidCheckpoint: the file cannot be read, or holds something else.
    """
    if file.suffix != ".json":
        raise InvalidCheckpoint(f"{file} is not a checkpoint: {WHAT_IT_TAKES}")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise InvalidCheckpoint(f"{file} cannot be read: {first_line(problem)}") from None
    if not isinstance(settings, dict):
        raise InvalidCheckpoint(f"{file} holds a {type(settings).__name__}, not an object")
    return settings


def read_decoder(settings: Settings, name: str, where: str) -> Decoder:
    """The decoder that settings describe; `where` is named in errors.

    Raises:
        InvalidCheckpoint: a model type that is not known, or impossible sizes.
    """
    kind = kind_of(settings, where)
    sizes = _Sizes(completed(settings, where), where)
    return _Builder(sizes, FAMILIES[kind], kind).decoder(name)


def kind_of(settings: Settings, where: str) -> str:
    """The model type, which is one of `FAMILIES`.

    Raises:
        InvalidCheckpoint: a model type that is not known.
    """
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise InvalidCheckpoint(_unknown(kind, where))
    return kind


def completed(settings: Settings, where: str) -> Settings:
    """The settings of the text part, with what its configuration class has by default.

    Raises:
        InvalidCheckpoint: a model type that is not known.
    """
    kind = kind_of(settings, where)
    text = settings.get("text_config")
    if isinstance(text, dict):
        settings = {"tie_word_embeddings": True, **text, "model_type": kind}
    return {**FAMILIES[kind].defaults, **settings}


def _unknown(kind: object, where: str) -> str:
    if kind is None:
        return f"{where} names no model_type: {WHAT_IT_TAKES}"
    hint = did_you_mean(kind, FAMILIES) if isinstance(kind, str) else ""
    return f"{where}: the model type {kind!r} is not known.{hint} Known are {', '.join(FAMILIES)}"


@dataclass(frozen=True)
class _Sizes:
    """The numbers of a configuration, each checked when it is asked for."""

    settings: Settings
    where: str

    def size(self, *keys: str, default: int | None = None) -> int:
        """The first of the keys that is there, as a count above zero."""
        value = next((v for key in keys if (v := self.settings.get(key)) is not None), default)
        if value is None:
            raise InvalidCheckpoint(f"{self.where}: {keys[0]} is missing")
        if type(value) is not int or not 0 < value <= LARGEST:
            raise InvalidCheckpoint(f"{self.where}: {keys[0]} is {value!r}, not a count above zero")
        return value

    def count(self, *keys: str) -> int:
        """As a size, and 0 where it is missing or 0."""
        found = [value for key in keys if (value := self.settings.get(key)) not in (None, 0)]
        return self.size(*keys) if found else 0

    def is_set(self, key: str) -> bool:
        return bool(self.settings.get(key))


@dataclass(frozen=True)
class _Builder:
    """Puts a decoder together: attention, feed-forward part, norms, embeddings."""

    sizes: _Sizes
    family: Family
    kind: str

    def decoder(self, name: str) -> Decoder:
        is_tied = self.sizes.is_set("tie_word_embeddings")
        weights = (*self._ends(is_tied), *self._attention(), *self._feed_forward(), *self._norms())
        layers = len(self._layers)
        return Decoder(
            name=name,
            family=self.kind,
            layers=layers,
            hidden=self._hidden,
            vocabulary=self.sizes.size("vocab_size"),
            weights=weights,
            cached=layers * self._cached,
            activations=self._activations(weights),
            heads=self._heads,
            attended=layers * self._heads * sum(self._score_widths),
            norm_offset=self.family.norm_offset,
            longest_context=self.sizes.count("max_position_embeddings") or None,
            is_tied=is_tied,
        )

    def _ends(self, is_tied: bool) -> Iterator[Weights]:
        vocabulary = self.sizes.size("vocab_size")
        if is_tied:
            yield Weights(EMBEDDING, Role.HEAD, vocabulary, self._hidden, norm=LAST_NORM)
            return
        yield Weights(EMBEDDING, Role.EMBEDDING, vocabulary, self._hidden)
        yield Weights(HEAD, Role.HEAD, vocabulary, self._hidden, norm=LAST_NORM)

    def _attention(self) -> Iterator[Weights]:
        if self._is_latent:
            yield from self._latent_attention()
            return
        query, cached = self._heads * self._head, self._cached // 2
        before = "input_layernorm"
        has_bias = self.family.has_qkv_bias or self.sizes.is_set("attention_bias")
        for part, outputs in (("q", query), ("k", cached), ("v", cached)):
            yield self._matrix(f"self_attn.{part}_proj", outputs, self._hidden, before)
            if has_bias:
                yield self._vector(f"self_attn.{part}_proj.bias", outputs)
        yield self._matrix("self_attn.o_proj", self._hidden, query)
        if self.sizes.is_set("attention_bias"):
            yield self._vector("self_attn.o_proj.bias", self._hidden)
        if self.family.has_head_norms:
            for part in "qk":
                yield self._vector(f"self_attn.{part}_norm.weight", self._head)

    def _latent_attention(self) -> Iterator[Weights]:
        """DeepSeek's: keys and values are made from one short vector, and only that is kept."""
        size, hidden, heads, before = self.sizes.size, self._hidden, self._heads, "input_layernorm"
        latent, turned = size("kv_lora_rank"), size("qk_rope_head_dim")
        plain, value = size("qk_nope_head_dim"), size("v_head_dim")
        if rank := self.sizes.count("q_lora_rank"):
            yield self._matrix("self_attn.q_a_proj", rank, hidden, before)
            yield self._vector("self_attn.q_a_layernorm.weight", rank)
            outputs = heads * (plain + turned)
            yield self._matrix("self_attn.q_b_proj", outputs, rank, "self_attn.q_a_layernorm")
        else:
            yield self._matrix("self_attn.q_proj", heads * (plain + turned), hidden, before)
        yield self._matrix("self_attn.kv_a_proj_with_mqa", latent + turned, hidden, before)
        yield self._vector("self_attn.kv_a_layernorm.weight", latent)
        outputs = heads * (plain + value)
        yield self._matrix("self_attn.kv_b_proj", outputs, latent, "self_attn.kv_a_layernorm")
        yield self._matrix("self_attn.o_proj", hidden, heads * value)

    def _feed_forward(self) -> Iterator[Weights]:
        dense = self._dense_layers
        if dense:
            yield from self._gated("mlp.", self.sizes.size("intermediate_size"), dense)
            if self.sizes.is_set("mlp_bias"):
                for part in ("gate", "up"):
                    width = self.sizes.size("intermediate_size")
                    yield self._vector(f"mlp.{part}_proj.bias", width)
                yield self._vector("mlp.down_proj.bias", self._hidden)
        if sparse := self._sparse_layers:
            yield from self._experts(sparse)

    def _gated(self, prefix: str, width: int, layers: range) -> Iterator[Weights]:
        before = self.family.feed_norm
        for part in ("gate", "up"):
            found = self._matrix(f"{prefix}{part}_proj", width, self._hidden, before)
            yield replace(found, layers=layers)
        found = self._matrix(f"{prefix}down_proj", self._hidden, width)
        yield replace(found, layers=layers)

    def _experts(self, layers: range) -> Iterator[Weights]:
        """The router, the experts that it chooses from, and those that every token passes."""
        experts, active = self._expert_count, self.sizes.size("num_experts_per_tok")
        if active > experts:
            raise InvalidCheckpoint(
                f"{self.sizes.where}: num_experts_per_tok is {active}, more than {experts} experts"
            )
        is_mixtral = self.kind == "mixtral"
        block = "block_sparse_moe" if is_mixtral else "mlp"
        width = self.sizes.size("moe_intermediate_size", "intermediate_size")
        router = self._matrix(f"{block}.gate", experts, self._hidden, self.family.feed_norm)
        yield replace(router, role=Role.ROUTER, layers=layers)
        if self.kind == "deepseek_v3":
            bias = self._vector(f"{block}.gate.e_score_correction_bias", experts)
            yield replace(bias, layers=layers)
        for each in self._gated(f"{block}.experts.{{expert}}.", width, layers):
            named = _as_in_mixtral(each) if is_mixtral else each
            yield replace(named, experts=experts, active_experts=active)
        if shared := self.sizes.count("n_shared_experts"):
            yield from self._gated(f"{block}.shared_experts.", width * shared, layers)

    def _norms(self) -> Iterator[Weights]:
        for norm in ("input_layernorm", self.family.feed_norm, *self.family.further_norms):
            yield self._vector(f"{norm}.weight", self._hidden)
        yield Weights(LAST_NORM, Role.VECTOR, self._hidden)

    def _matrix(self, name: str, outputs: int, inputs: int, norm: str = "") -> Weights:
        return Weights(
            f"{_LAYER}{name}.weight",
            Role.MATRIX,
            outputs,
            inputs,
            self._layers,
            norm=f"{_LAYER}{norm}.weight" if norm else "",
        )

    def _vector(self, name: str, length: int) -> Weights:
        return Weights(f"{_LAYER}{name}", Role.VECTOR, length, layers=self._layers)

    # ---- sizes that follow from others

    @property
    def _layers(self) -> range:
        layers = self.sizes.size("num_hidden_layers")
        if layers > MOST_LAYERS:
            raise InvalidCheckpoint(f"{self.sizes.where}: num_hidden_layers is {layers}")
        return range(layers)

    @property
    def _hidden(self) -> int:
        return self.sizes.size("hidden_size")

    @property
    def _heads(self) -> int:
        return self.sizes.size("num_attention_heads")

    @property
    def _head(self) -> int:
        return self.sizes.size("head_dim", default=self._hidden // self._heads)

    @property
    def _is_latent(self) -> bool:
        return self.kind.startswith("deepseek")

    @property
    def _cached(self) -> int:
        """Elements that one token leaves in one layer's cache."""
        size = self.sizes.size
        if self._is_latent:
            return size("kv_lora_rank") + size("qk_rope_head_dim")
        return 2 * size("num_key_value_heads", default=self._heads) * self._head

    @property
    def _score_widths(self) -> tuple[int, int]:
        """How wide a head's keys and its values are."""
        size = self.sizes.size
        if self._is_latent:
            return size("qk_nope_head_dim") + size("qk_rope_head_dim"), size("v_head_dim")
        return self._head, self._head

    @property
    def _expert_count(self) -> int:
        return self.sizes.count("n_routed_experts", "num_local_experts", "num_experts")

    @property
    def _dense_layers(self) -> range:
        if not self._expert_count:
            return self._layers
        return self._layers[: self.sizes.count("first_k_dense_replace")]

    @property
    def _sparse_layers(self) -> range:
        return self._layers[len(self._dense_layers) :]

    def _activations(self, weights: tuple[Weights, ...]) -> int:
        """The widest stretch: a matrix's inputs and outputs, twice, as gates have two branches."""
        layers = [each for each in weights if each.role is Role.MATRIX]
        return max(2 * (each.inputs + each.outputs) * each.active_experts for each in layers)


def _as_in_mixtral(weights: Weights) -> Weights:
    """Mixtral numbers what others name."""
    name = weights.name
    for word, number in (("gate_proj", "w1"), ("down_proj", "w2"), ("up_proj", "w3")):
        name = name.replace(word, number)
    return replace(weights, name=name)
