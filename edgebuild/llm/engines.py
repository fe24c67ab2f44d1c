"""What runtimes make of a decoder: the memory of its weights, its cache, and of what they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from edgebuild.llm.mix import MIXES, Layouts, Mix
from edgebuild.vocabulary.decoder import Decoder, Role, Weights
from edgebuild.vocabulary.fit import Loading, Needs
from edgebuild.vocabulary.units import Bytes
from edgebuild.vocabulary.weight_format import WeightFormat

# Tokens that are prefilled at once; more would need more memory and gain little.
CHUNK = 128
# Activations and logits are floats of four bytes on CPUs.
FLOAT = 4


class Engine(Protocol):
    """A runtime with what it offers.

    Attributes:
        mixes: precisions, from the most precise to the smallest.
        caches: bytes of an element of the KV cache, by the cache's name; the best one first.
        loadings: how weights may come into memory; what it does by itself first.
    """

    mixes: ClassVar[Sequence[Mix]]
    caches: ClassVar[Mapping[str, int]]
    loadings: ClassVar[Sequence[Loading]]

    def needs(
        self, decoder: Decoder, layouts: Layouts, cache: str, loading: Loading, context: int
    ) -> Needs:
        """The memory of a decoder at a precision, with a full context."""


@dataclass(frozen=True)
class Onnxruntime:
    """onnxruntime's CPU kernels, with the graphs that are written here.

    Four-bit caches are not offered: they lose 14 to 17 % of the output.
    """

    mixes: ClassVar[Sequence[Mix]] = MIXES
    caches: ClassVar[Mapping[str, int]] = {"fp16": 2, "int8": 1}
    loadings: ClassVar[Sequence[Loading]] = tuple(Loading)
    # Heap that it holds however small the network is: with weights mapped, 46 MB were seen.
    runtime: ClassVar[Bytes] = Bytes(46_000_000)
    # Its kernels hold a block's scale, sum and correction beside its weights: measured were
    # w · (0.5 + 10/block) bytes for w four-bit weights; other widths are taken to differ in the
    # 0.5.
    repacked_per_block: ClassVar[float] = 10.0

    def needs(
        self, decoder: Decoder, layouts: Layouts, cache: str, loading: Loading, context: int
    ) -> Needs:
        looked_up = _looked_up(decoder, layouts)
        repacked = repacked_bytes(decoder, layouts, self.repacked_per_block)
        # Prepacked weights are repacked ones in a file. What they were made from is in it too, and
        # nobody reads it again.
        is_mapped = loading is Loading.MAPPED
        return Needs(
            loading=loading,
            stored=_stored(decoder, layouts),
            mapped=Bytes(looked_up + repacked) if is_mapped else looked_up,
            repacked=Bytes(0) if is_mapped else repacked,
            cache=Bytes(decoder.cached * context * self.caches[cache]),
            logits=Bytes(decoder.vocabulary * FLOAT),
            activations=_activations(decoder, context),
            runtime=self.runtime,
        )


@dataclass(frozen=True)
class Litert:
    """LiteRT's interpreter with XNNPACK, as `run.py` calls it.

    Blocks are four bits wide or floats: XNNPACK has no other kernels for blocks. Both signatures
    share the weights that it has repacked. Each holds the cache twice, as what goes in and what
    comes out, and the loader holds it twice while it hands it on: six times in all, as measured.
    """

    mixes: ClassVar[Sequence[Mix]] = tuple(
        map(Mix.parse, ("fp32", "int4-g32", "int4-g64", "int4-g128", "int4-g256"))
    )
    caches: ClassVar[Mapping[str, int]] = {"fp32": 4}
    loadings: ClassVar[Sequence[Loading]] = (Loading.REPACKED,)
    copies: ClassVar[int] = 6
    # Heap of Python, numpy and the runtime with a network of a few kilobytes: 25 MB were seen.
    runtime: ClassVar[Bytes] = Bytes(26_000_000)
    # Measured on 29 and on 97 million four-bit weights in blocks of 32: .95 and 1.04 bytes each.
    repacked_per_block: ClassVar[float] = 16.0

    def needs(
        self, decoder: Decoder, layouts: Layouts, cache: str, loading: Loading, context: int
    ) -> Needs:
        return Needs(
            loading=loading,
            stored=_stored(decoder, layouts),
            mapped=_looked_up(decoder, layouts),
            repacked=repacked_bytes(decoder, layouts, self.repacked_per_block),
            cache=Bytes(decoder.cached * context * self.caches[cache] * self.copies),
            logits=Bytes(decoder.vocabulary * FLOAT),
            activations=_activations(decoder, context),
            runtime=self.runtime,
        )


ONNXRUNTIME, LITERT = Onnxruntime(), Litert()


def repacked_bytes(decoder: Decoder, layouts: Layouts, per_block: float) -> Bytes:
    """What a runtime holds of all weights after it has reordered them."""
    held = [
        weights.elements * _each_repacked(layout, per_block) * count
        for weights in decoder.weights
        if weights.role is not Role.EMBEDDING
        for layout, count in by_layout(layouts, weights)
    ]
    return Bytes(round(sum(held)))


def by_layout(layouts: Layouts, weights: Weights) -> Iterable[tuple[WeightFormat, int]]:
    """How many of some tensors are stored in which way."""
    if isinstance(layouts, Mix):
        return ((layouts.of(weights), weights.count),)
    return Counter(layouts.of(weights, name) for name, _ in weights.names()).items()


def sizes_of(decoder: Decoder, layouts: Layouts) -> Iterator[tuple[Weights, int]]:
    """The bytes of tensors of one shape, in the file."""
    for weights in decoder.weights:
        for layout, count in by_layout(layouts, weights):
            yield weights, layout.size(weights.outputs, weights.inputs) * count


def _each_repacked(stored: WeightFormat, per_block: float) -> float:
    """Bytes of a weight: kernels compute with floats of four bytes."""
    return FLOAT if stored.is_float else stored.bits / 8 + per_block / stored.block


def _stored(decoder: Decoder, layouts: Layouts) -> Bytes:
    return Bytes(sum(size for _, size in sizes_of(decoder, layouts)))


def _looked_up(decoder: Decoder, layouts: Layouts) -> Bytes:
    """An embedding is looked up where it lies in the file, whatever becomes of the rest."""
    found = sizes_of(decoder, layouts)
    return Bytes(sum(size for weights, size in found if weights.role is Role.EMBEDDING))


def _activations(decoder: Decoder, context: int) -> Bytes:
    """Of a chunk of tokens, with the scores of all heads."""
    chunk = min(CHUNK, context)
    scores = decoder.heads * chunk * context * FLOAT
    return Bytes(chunk * decoder.activations * FLOAT + scores)
