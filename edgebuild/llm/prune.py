"""Takes the least important channels, heads and layers out of a decoder.

What remains is an ordinary checkpoint of the same family: every layer keeps equally many channels
and heads. Importance is seen on text, as in Minitron (Muralidharan et al., arXiv 2407.14679).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from edgebuild.llm._kernels_numpy import Floats
from edgebuild.llm.calibrate import Seen
from edgebuild.llm.checkpoint import FLOATS, WHOLE, Checkpoint, Cut, Numbers, StoredTensor
from edgebuild.llm.config import Settings
from edgebuild.llm.network import COMPUTED, Network, read_network
from edgebuild.llm.reduction import (
    MULTIPLE,
    down_of,
    energies,
    kept_settings,
    most_important,
    part_of,
    renumbered,
)
from edgebuild.llm.save import Planned, pieces, write_rest, write_tensors
from edgebuild.llm.sites import layer_of
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.errors import InputError, InvalidCheckpoint, InvalidQuantity
from edgebuild.vocabulary.language_model import Sizes


@dataclass(frozen=True)
class Shares:
    """How much stays: of the feed-forward part's channels, of the groups of heads, of the layers.

    Raises:
        InvalidQuantity: a share that is none, or all of them 1.
    """

    ffn: float = 1.0
    heads: float = 1.0
    layers: float = 1.0

    def __post_init__(self) -> None:
        named = {"ffn": self.ffn, "heads": self.heads, "layers": self.layers}
        for name, share in named.items():
            if not 0 < share <= 1:
                raise InvalidQuantity(f"--{name} {share:g}: a share is above 0 and at most 1")
        if set(named.values()) == {1.0}:
            raise InvalidQuantity(
                "nothing would go: say how much stays, by --ffn 0.75, --heads 0.75 or --layers 0.75"
            )


@dataclass(frozen=True)
class Counts:
    """How many layers stay, and in each how many groups of heads and channels."""

    layers: int
    groups: int
    width: int


@dataclass(frozen=True)
class Kept:
    """The layers that stay, and of each its channels and its groups of heads, all by number.

    A group are the query heads that share one key and value.
    """

    layers: tuple[int, ...]
    channels: Mapping[int, Numbers]
    groups: Mapping[int, Numbers]


@dataclass(frozen=True)
class Subject:
    """A checkpoint that can be pruned, with its network."""

    checkpoint: Checkpoint
    network: Network = field(repr=False)

    @property
    def sizes(self) -> Sizes:
        network, decoder = self.network, self.checkpoint.decoder
        return Sizes(
            decoder.layers, network.heads, network.cached_heads, self.ffn, decoder.parameters
        )

    @property
    def ffn(self) -> int:
        """Channels of the feed-forward part."""
        return self.checkpoint.tensors[down_of(0)].shape[1]


def open_subject(checkpoint: Checkpoint) -> Subject:
    """A checkpoint with its network.

    Raises:
        InvalidCheckpoint: no weights, quantized ones, or a family that is not pruned.
    """
    path, kind = checkpoint.path, checkpoint.decoder.family
    if checkpoint.method:
        raise InvalidCheckpoint(
            f"{path} is quantized by {checkpoint.method} already: give the floats that it was made "
            "from"
        )
    if "text_config" in checkpoint.settings:
        raise InvalidCheckpoint(f"{path} holds more than a language model: give its text part")
    if kind not in COMPUTED:
        raise InvalidCheckpoint(f"{path}: {kind} is not pruned; known are {', '.join(COMPUTED)}")
    if not checkpoint.tensors:
        raise InvalidCheckpoint(f"{path} has no weights: *.safetensors is missing")
    return Subject(checkpoint, read_network(checkpoint))


def count_kept(sizes: Sizes, shares: Shares) -> Counts:
    """The nearest counts to the shares; widths are multiples that blocks of weights like.

    Raises:
        InputError: a share that leaves everything as it is.
    """
    return Counts(
        _count("layers", shares.layers, sizes.layers),
        _count("heads", shares.heads, sizes.cached_heads),
        _count("ffn", shares.ffn, sizes.ffn, MULTIPLE),
    )


def choose_kept(subject: Subject, seen: Seen, counts: Counts) -> Kept:
    """The most important of each kind, by what was seen on text.

    A channel's or head's importance is the energy that the matrix behind it draws from it: mean
    squares of its inputs times squared weights. A layer's is how much it changes what it reads.
    """
    influences = np.array([seen.influences[layer] for layer in range(subject.sizes.layers)])
    kept = most_important(influences, counts.layers)
    channels, heads = {}, {}
    for layer in map(int, kept):
        drawn, mixed = (
            energies(subject.checkpoint, seen.importances, name)
            for name in (down_of(layer), f"model.layers.{layer}.self_attn.o_proj.weight")
        )
        channels[layer] = most_important(drawn, counts.width)
        by_group = mixed.reshape(subject.sizes.cached_heads, -1).sum(axis=1)
        heads[layer] = most_important(by_group, counts.groups)
    return Kept(tuple(map(int, kept)), channels, heads)


def write_pruned(subject: Subject, kept: Kept, folder: Path, progress: Progress) -> None:
    """Writes what stays as a checkpoint, in the types that it had.

    Raises:
        MissingPackage: transformers, which rebuilds the tokenizer of a GGUF file, is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = subject.checkpoint
    tensors = dict(_remaining(subject, kept))
    planned = [Planned(name, _dtype(each), each.read_shape) for name, each in tensors.items()]
    with progress.step("prune", len(planned)) as bar:

        def arrays() -> Iterator[Iterator[Floats]]:
            for name, each in tensors.items():
                yield pieces(name, tensors)
                bar.advance(each.name)

        write_tensors(folder, planned, arrays())
    write_rest(checkpoint, _settings(subject, kept), folder)


def everything(subject: Subject) -> Kept:
    """All of it: what a GGUF file holds, as a checkpoint."""
    sizes = subject.sizes
    layers = range(sizes.layers)
    channels, groups = np.arange(sizes.ffn), np.arange(sizes.cached_heads)
    return Kept(tuple(layers), dict.fromkeys(layers, channels), dict.fromkeys(layers, groups))


# ---- what stays


def _count(name: str, share: float, whole: int, multiple: int = 1) -> int:
    """The nearest number of units, at least one."""
    if share == 1:
        return whole
    found = max(int(share * whole / multiple + 0.5), 1) * multiple
    if found >= whole:
        widths = f", in multiples of {multiple}" if multiple > 1 else ""
        raise InputError(
            f"--{name} {share:g} leaves all {whole} in place{widths}: give less, or leave it out"
        )
    return found


# ---- the checkpoint


def _remaining(subject: Subject, kept: Kept) -> Iterator[tuple[str, StoredTensor]]:
    """Every tensor of the result, as it is read from the whole one."""
    checkpoint = subject.checkpoint
    for new, old in renumbered(checkpoint.decoder, kept.layers):
        layer, tensor = layer_of(old), checkpoint.tensors[old]
        cut = WHOLE if layer is None else _cut(subject.network, kept, layer, part_of(old))
        yield new, replace(tensor, cut=cut)


def _cut(network: Network, kept: Kept, layer: int, part: str) -> Cut:
    """How the projections of a layer are cut; its norms stay whole."""
    head, shared = network.head, network.heads // network.cached_heads
    groups = kept.groups[layer]
    match part:
        case "q_proj":
            return Cut(rows=_spread(groups, shared * head))
        case "k_proj" | "v_proj":
            return Cut(rows=_spread(groups, head))
        case "o_proj":
            return Cut(columns=_spread(groups, shared * head))
        case "gate_proj" | "up_proj":
            return Cut(rows=kept.channels[layer])
        case "down_proj":
            return Cut(columns=kept.channels[layer])
    return WHOLE


def _spread(groups: Numbers, size: int) -> Numbers:
    """The numbers of all elements of groups of this size."""
    found: Numbers = (groups[:, None] * size + np.arange(size)).ravel()
    return found


def _dtype(tensor: StoredTensor) -> str:
    """As it was; blocks of a GGUF file become halves."""
    return tensor.dtype if tensor.dtype in FLOATS else "F16"


def _settings(subject: Subject, kept: Kept) -> Settings:
    """config.json with the new sizes, and all that would follow from the old ones said."""
    checkpoint, network = subject.checkpoint, subject.network
    first = kept.layers[0]
    groups = len(kept.groups[first])
    sizes: dict[str, object] = {
        "intermediate_size": len(kept.channels[first]),
        "num_attention_heads": groups * network.heads // network.cached_heads,
        "num_key_value_heads": groups,
        "head_dim": network.head,
    }
    return {**kept_settings(checkpoint, network, kept.layers), **sizes}
