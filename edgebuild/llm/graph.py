"""The ONNX graph of a converted decoder: its weights stay where the conversion has put them.

Inputs and outputs are named as onnxruntime-genai names them: token ids and an attention mask go in,
each layer's keys and values go in and out, and logits of the last token come out. Keys and values
may be one buffer for both, as long as the context; nothing is copied then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgebuild.generate import CONTEXT_KEY
from edgebuild.llm._kernels_numpy import Floats
from edgebuild.llm.config import EMBEDDING, LAST_NORM
from edgebuild.llm.network import Activation, Network
from edgebuild.llm.store import DATA, Entry, Index, Piece

Shape = Sequence[str | int | None]
Attribute = float | str | list[int]
OPSET, IR = 21, 10
MICROSOFT = "com.microsoft"
# Activations in eight bits where the kernel has such a path: the one that is fast on CPUs.
ACCURACY_LEVEL = 4
TYPES = {
    "uint8": TensorProto.UINT8,
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
}


class Logits(StrEnum):
    """Of which tokens logits come out."""

    LAST = "last"
    ALL = "all"


@dataclass(frozen=True)
class CacheScales:
    """What an eight-bit cache is scaled by: keys and values of each layer, [heads, 1, head]."""

    keys: Sequence[Floats]
    values: Sequence[Floats]


@dataclass(frozen=True)
class CacheFormat:
    """How keys and values are kept: as halves, or as eight bits by scales that were measured."""

    scales: CacheScales | None = None

    @property
    def element(self) -> int:
        return TensorProto.INT8 if self.scales else TensorProto.FLOAT16


HALVES = CacheFormat()


def decoder_graph(
    network: Network,
    index: Index,
    context: int,
    cache: CacheFormat = HALVES,
    logits: Logits = Logits.LAST,
) -> onnx.ModelProto:
    """The graph of a network whose weights are those of an index.

    Args:
        context: the most tokens that it is run with; its tables of positions are as long.
    """
    return _Builder(network, {entry.name: entry for entry in index.entries}, context, cache).model(
        logits
    )


def write_graph(model: onnx.ModelProto, file: Path) -> None:
    """Beside the data file, which it names."""
    part = file.with_name(f"{file.name}.part")
    part.write_bytes(model.SerializeToString(deterministic=True))
    part.replace(file)


@dataclass
class _Builder:
    """Adds nodes one after the other; each method returns the name of what it has made."""

    network: Network
    entries: Mapping[str, Entry]
    context: int
    cache: CacheFormat
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def model(self, logits: Logits) -> onnx.ModelProto:
        self._lengths()
        stream = self._embedded("input_ids")
        added = ""
        for layer in self.network.layers:
            stream, added = self._layer(layer, stream, added)
        out = self._head(stream, added, logits)
        self._node("Identity", [out], ["logits"])
        graph = helper.make_graph(
            self.nodes,
            self.network.decoder.name,
            list(self._inputs()),
            list(self._outputs(logits)),
            list(self.constants.values()),
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
            ir_version=IR,
            producer_name="edgebuild",
        )
        helper.set_model_props(model, {CONTEXT_KEY: str(self.context)})
        return model

    # ---- what goes in and out

    def _inputs(self) -> Iterator[onnx.ValueInfoProto]:
        yield helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "new"])
        yield helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "total"])
        yield from self._cached("past_key_values", "past")

    def _outputs(self, logits: Logits) -> Iterator[onnx.ValueInfoProto]:
        length = 1 if logits is Logits.LAST else "new"
        shape: Shape = ["batch", length, self.network.decoder.vocabulary]
        yield helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)
        yield from self._cached("present", "present")

    def _cached(self, name: str, length: str) -> Iterator[onnx.ValueInfoProto]:
        shape: Shape = ["batch", self.network.cached_heads, length, self.network.head]
        for layer in self.network.layers:
            for part in ("key", "value"):
                yield helper.make_tensor_value_info(
                    f"{name}.{layer}.{part}", self.cache.element, shape
                )

    def _lengths(self) -> None:
        """How many tokens there are, the new ones included, as the attention wants it told."""
        axis = self._constant("axis.1", np.array([1]))
        count = self._node("ReduceSum", ["attention_mask", axis], keepdims=0)
        last = self._node("Sub", [count, self._constant("one", np.array(1))])
        self._node("Cast", [last], ["past_lengths"], to=TensorProto.INT32)
        shape = self._node("Shape", ["attention_mask"], start=1, end=2)
        squeezed = self._node("Squeeze", [shape])
        self._node("Cast", [squeezed], ["total_length"], to=TensorProto.INT32)

    # ---- the network

    def _layer(self, layer: int, stream: str, added: str) -> tuple[str, str]:
        """What flows on, and what the feed-forward part adds to it."""
        network, at = self.network, f"model.layers.{layer}."
        normed, stream = self._normed(f"{at}input_layernorm.weight", stream, added)
        mixed = self._attention(layer, normed)
        added = self._times(f"{at}self_attn.o_proj", mixed)
        if network.after_attention:
            added, _ = self._normed(f"{at}{network.after_attention}.weight", added)
        normed, stream = self._normed(f"{at}{network.before_feed}.weight", stream, added)
        gate = self._activated(self._times(f"{at}mlp.gate_proj", normed))
        gated = self._node("Mul", [gate, self._times(f"{at}mlp.up_proj", normed)])
        added = self._times(f"{at}mlp.down_proj", gated)
        if network.after_feed:
            added, _ = self._normed(f"{at}{network.after_feed}.weight", added)
        return stream, added

    def _attention(self, layer: int, normed: str) -> str:
        network, at = self.network, f"model.layers.{layer}.self_attn."
        query, key, value = (self._times(f"{at}{part}_proj", normed) for part in "qkv")
        query = self._head_normed(f"{at}q_norm.weight", query, network.heads)
        key = self._head_normed(f"{at}k_norm.weight", key, network.cached_heads)
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        present = [f"present.{layer}.{part}" for part in ("key", "value")]
        mixed = f"{at}mixed"
        scales = self._cache_scales(layer)
        projected, by_channel = [query, key, value], "PER_CHANNEL"
        if not scales:
            # Halves beside halves: else all of the cache would become floats, and halves again.
            projected = [self._node("Cast", [one], to=TensorProto.FLOAT16) for one in projected]
        eight_bits: dict[str, Attribute] = {
            "k_quant_type": by_channel,
            "v_quant_type": by_channel,
            "kv_cache_bit_width": 8,
        }
        self._node(
            "GroupQueryAttention",
            [*projected, *past, "past_lengths", "total_length", *self._turns(layer), *scales],
            [mixed, *present],
            domain=MICROSOFT,
            num_heads=network.heads,
            kv_num_heads=network.cached_heads,
            scale=network.scale,
            do_rotary=1,
            local_window_size=network.windows[layer] or -1,
            softcap=network.score_cap or 0.0,
            **(eight_bits if scales else {}),
        )
        return mixed if scales else self._as_float(mixed)

    def _cache_scales(self, layer: int) -> list[str]:
        """With the places that come before them in the list of inputs."""
        given = self.cache.scales
        if given is None:
            return []
        return ["", "", ""] + [
            self._constant(f"{kind}.scale.{layer}", one[layer])
            for kind, one in (("key", given.keys), ("value", given.values))
        ]

    def _turns(self, layer: int) -> list[str]:
        """The tables of a layer's rotation; layers that turn alike share them."""
        rotation = self.network.rotations[layer]
        which = sorted(set(self.network.rotations), key=str).index(rotation)
        names = [f"{kind}.{which}" for kind in ("cosines", "sines")]
        if names[0] not in self.constants:
            for name, table in zip(
                names, rotation.tables(self.network.head, self.context), strict=True
            ):
                self._constant(name, table if self.cache.scales else table.astype(np.float16))
        return names

    def _activated(self, gate: str) -> str:
        match self.network.activation:
            case Activation.SILU:
                return self._node("QuickGelu", [gate], domain=MICROSOFT, alpha=1.0)
            case Activation.GELU:
                return self._node("Gelu", [gate])
            case Activation.GELU_TANH:
                return self._node("Gelu", [gate], approximate="tanh")

    def _head(self, stream: str, added: str, logits: Logits) -> str:
        if logits is Logits.LAST:
            stream, added = self._last(stream), self._last(added)
        normed, _ = self._normed(LAST_NORM, stream, added)
        out = self._times(self.network.head_matrix, normed)
        if cap := self.network.logit_cap:
            limit = self._constant("logit_cap", np.float32(cap))
            bent = self._node("Tanh", [self._node("Div", [out, limit])])
            out = self._node("Mul", [bent, limit])
        return out

    def _last(self, tokens: str) -> str:
        """The last token of each row, [batch, 1, hidden]."""
        start, end = (self._constant(f"at.{n}", np.array([n])) for n in (-1, 2**31))
        return self._node("Slice", [tokens, start, end, self._constant("axis.1", np.array([1]))])

    def _embedded(self, ids: str) -> str:
        """Rows of the embedding, as floats of four bytes."""
        entry = self.entries[EMBEDDING]
        if entry.layout.is_float:
            found = self._node("Gather", [self._stored(entry, entry.pieces[0]), ids])
        else:
            codes, *rest = entry.pieces
            rows = _as_rows(codes, entry.rows)
            found = self._node(
                "GatherBlockQuantized",
                [
                    self._stored(entry, rows, "rows"),
                    ids,
                    *(self._stored(entry, piece) for piece in rest),
                ],
                domain=MICROSOFT,
                bits=entry.layout.bits,
                block_size=entry.layout.block,
                gather_axis=0,
                quantize_axis=1,
            )
        found = self._node("Cast", [found], to=TensorProto.FLOAT)
        if self.network.embedding_scale == 1.0:
            return found
        scale = self._constant("embedding_scale", np.float32(self.network.embedding_scale))
        return self._node("Mul", [found, scale])

    # ---- pieces

    def _normed(self, name: str, stream: str, added: str = "") -> tuple[str, str]:
        """A norm of the stream, and the stream with what is added to it before."""
        weight, epsilon = self._norm_weight(name), self.network.epsilon
        normed = f"{name}.normed"
        if not added:
            inputs = [stream, weight]
            self._node("SimplifiedLayerNormalization", inputs, [normed], epsilon=epsilon, axis=-1)
            return normed, stream
        summed = f"{name}.summed"
        self._node(
            "SkipSimplifiedLayerNormalization",
            [stream, added, weight],
            [normed, "", "", summed],
            domain=MICROSOFT,
            epsilon=epsilon,
        )
        return normed, summed

    def _norm_weight(self, name: str) -> str:
        entry, offset = self.entries[name], self.network.decoder.norm_offset
        weight = self._stored(entry, entry.pieces[0])
        if not offset:
            return weight
        return self._node("Add", [weight, self._constant("norm_offset", np.float32(offset))])

    def _head_normed(self, name: str, parts: str, heads: int) -> str:
        """Each head normed by itself, where the family does so."""
        if not self.network.has(name):
            return parts
        head = self.network.head
        apart = self._constant(f"shape.{heads}.apart", np.array([0, 0, heads, head]))
        joined = self._constant(f"shape.{heads}.joined", np.array([0, 0, heads * head]))
        normed, _ = self._normed(name, self._node("Reshape", [parts, apart]))
        return self._node("Reshape", [normed, joined])

    def _times(self, name: str, inputs: str) -> str:
        """A matrix with its bias, if it has one; or two factors in its place."""
        entry = self.entries.get(f"{name}.weight")
        if entry is None:
            entry = self.entries[f"{name}.second.weight"]
            inputs = self._times(f"{name}.first", inputs)
        biases = [
            self._stored(bias, bias.pieces[0])
            for bias in (self.entries.get(f"{name}.bias"),)
            if bias is not None
        ]
        if entry.layout.is_float:
            weight = self._as_float(self._stored(entry, entry.pieces[0]))
            turned = self._node("Transpose", [weight], perm=[1, 0])
            found = self._node("MatMul", [inputs, turned])
            return self._node("Add", [found, *biases]) if biases else found
        codes, scales, *zeros = entry.pieces
        # The kernel wants scales as floats of four bytes: cast once, when the model is loaded.
        operands = [
            inputs,
            self._stored(entry, codes),
            self._as_float(self._stored(entry, scales)),
            self._stored(entry, zeros[0]) if zeros else "",
        ]
        return self._node(
            "MatMulNBits",
            [*operands, "", *biases] if biases else operands if zeros else operands[:3],
            domain=MICROSOFT,
            K=entry.inputs,
            N=entry.rows,
            bits=entry.layout.bits,
            block_size=entry.layout.block,
            accuracy_level=ACCURACY_LEVEL,
        )

    def _as_float(self, name: str) -> str:
        return self._node("Cast", [name], to=TensorProto.FLOAT)

    def _stored(self, entry: Entry, piece: Piece, kind: str = "") -> str:
        """An array of the data file."""
        name = f"{entry.name}.{kind or piece.kind}"
        if name not in self.constants:
            self.constants[name] = _external(name, piece)
        return name

    def _constant(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def _node(
        self,
        kind: str,
        inputs: Sequence[str],
        outputs: Sequence[str] = (),
        domain: str = "",
        **attributes: Attribute,
    ) -> str:
        name = f"{kind}.{len(self.nodes)}"
        made = list(outputs) or [name]
        self.nodes.append(
            helper.make_node(kind, list(inputs), made, name, domain=domain, **attributes)  # type: ignore[arg-type]
        )
        return made[0]


def _as_rows(piece: Piece, rows: int) -> Piece:
    """The same bytes, so many rows of them."""
    return Piece(piece.kind, piece.dtype, (rows, piece.length // rows), piece.offset, piece.length)


def _external(name: str, piece: Piece) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=TYPES[piece.dtype], dims=piece.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    places = {"location": DATA, "offset": piece.offset, "length": piece.length}
    for key, value in places.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor
