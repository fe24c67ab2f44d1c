"""Takes the least important channels, heads and layers out of a decoder.

What remains is an ordinary checkpoint of the same family: every layer keeps equally many channels
and heads. Importance is seen on text, as in Minitron (Muralidharan et al., arXiv 2407.14679).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgebuild.llm._kernels_numpy import Floats
from edgebuild.llm.calibrate import Seen
from edgebuild.llm.checkpoint import FLOATS, Checkpoint
from edgebuild.llm.config import Settings
from edgebuild.llm.layers import kept_settings, renumbered
from edgebuild.llm.mixed import LAYER
from edgebuild.llm.network import COMPUTED, Network, read_network
from edgebuild.llm.rows import open_rows, read_vector
from edgebuild.llm.save import Planned, write_rest, write_tensors
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.errors import InputError, InvalidCheckpoint, InvalidQuantity
from edgebuild.vocabulary.language_model import Sizes

Numbers = NDArray[np.int64]

# Blocks of weights that share a scale, and kernels, want widths of this.
MULTIPLE = 32
# Weights that are read at once.
CHUNK = 2**22


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
class Cut:
    """The rows and columns of a tensor that stay; None for all."""

    rows: Numbers | None = None
    columns: Numbers | None = None

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        sizes = zip((self.rows, self.columns), whole, strict=False)
        return tuple(size if kept is None else len(kept) for kept, size in sizes)

    def of(self, chunk: Floats, first: int) -> Floats:
        """What stays of rows [rows, columns] that begin at `first`."""
        if self.rows is not None:
            begun, ended = np.searchsorted(self.rows, [first, first + len(chunk)])
            chunk = chunk[self.rows[begun:ended] - first]
        return chunk if self.columns is None else chunk[:, self.columns]


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
        return self.checkpoint.tensors[_down(0)].shape[1]


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
    kept = _most_important(influences, counts.layers)
    channels, heads = {}, {}
    for layer in map(int, kept):
        channels[layer] = _most_important(_energies(subject, seen, _down(layer)), counts.width)
        energies = _energies(subject, seen, f"model.layers.{layer}.self_attn.o_proj.weight")
        by_group = energies.reshape(subject.sizes.cached_heads, -1).sum(axis=1)
        heads[layer] = _most_important(by_group, counts.groups)
    return Kept(tuple(map(int, kept)), channels, heads)


def write_pruned(subject: Subject, kept: Kept, folder: Path, progress: Progress) -> None:
    """Writes what stays as a checkpoint, in the types that it had.

    Raises:
        MissingPackage: transformers, which rebuilds the tokenizer of a GGUF file, is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = subject.checkpoint
    cuts = dict(_cuts(subject, kept))
    planned = [
        Planned(new, _dtype(checkpoint, old), cut.shape(checkpoint.tensors[old].shape))
        for new, (old, cut) in cuts.items()
    ]
    with progress.step("prune", len(planned)) as bar:

        def arrays() -> Iterator[Iterator[Floats]]:
            for old, cut in cuts.values():
                yield _pieces(old, cut, checkpoint)
                bar.advance(old)

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


def _most_important(scores: Floats, count: int) -> Numbers:
    """Their numbers in order; of equal ones the first."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def _energies(subject: Subject, seen: Seen, name: str) -> Floats:
    """How much a matrix draws from each of its inputs."""
    with open_rows(name, subject.checkpoint.tensors) as rows:
        squares = np.zeros(rows.shape[1], np.float64)
        for _, chunk in rows.chunks(CHUNK):
            squares += np.square(chunk).sum(axis=0, dtype=np.float64)
    found: Floats = (squares * seen.importances[name]).astype(np.float32)
    return found


def _down(layer: int) -> str:
    return f"model.layers.{layer}.mlp.down_proj.weight"


# ---- the checkpoint


def _cuts(subject: Subject, kept: Kept) -> Iterator[tuple[str, tuple[str, Cut]]]:
    """Every tensor of the result, with the one that it is cut from."""
    for new, old in renumbered(subject.checkpoint.decoder, kept.layers):
        match = LAYER.fullmatch(old)
        if match is None:
            yield new, (old, Cut())
            continue
        part = old.split(".")[-2]
        yield new, (old, _cut(subject.network, kept, int(match[1]), part))


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
    return Cut()


def _spread(groups: Numbers, size: int) -> Numbers:
    """The numbers of all elements of groups of this size."""
    found: Numbers = (groups[:, None] * size + np.arange(size)).ravel()
    return found


def _pieces(name: str, cut: Cut, checkpoint: Checkpoint) -> Iterator[Floats]:
    if len(checkpoint.tensors[name].shape) == 1:
        vector = read_vector(name, checkpoint.tensors)
        yield vector if cut.rows is None else vector[cut.rows]
        return
    with open_rows(name, checkpoint.tensors) as rows:
        for first, chunk in rows.chunks(CHUNK):
            yield cut.of(chunk, first)


def _dtype(checkpoint: Checkpoint, name: str) -> str:
    """As it was; blocks of a GGUF file become halves."""
    dtype = checkpoint.tensors[name].dtype
    return dtype if dtype in FLOATS else "F16"


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
