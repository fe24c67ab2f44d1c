"""Takes layers, and channels of feed-forward parts, out of a decoder: a view of what stays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edgebuild.llm._kernels_numpy import Floats
from edgebuild.llm.checkpoint import Checkpoint, Cut, Numbers
from edgebuild.llm.config import Settings, read_decoder
from edgebuild.llm.forward import Forward
from edgebuild.llm.network import SLIDING, Network, read_network
from edgebuild.llm.rows import SCALE_ENDING
from edgebuild.llm.save import pieces
from edgebuild.llm.sites import layer_of
from edgebuild.vocabulary.decoder import Decoder, Role, Weights

FULL = "full_attention"
# Blocks of weights that share a scale, and kernels, want widths of this.
MULTIPLE = 32
# How the matrices of a feed-forward part are cut to its channels.
FEED = {"gate_proj": "rows", "up_proj": "rows", "down_proj": "columns"}


@dataclass(frozen=True)
class Reduction:
    """Layers that go, and the channels that stay in others, by the layers' numbers."""

    removed: tuple[int, ...] = ()
    channels: Mapping[int, Numbers] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.removed or self.channels)


NOTHING = Reduction()


@dataclass(frozen=True)
class Remaining:
    """A checkpoint of what stays, with its tensors' names in the whole one."""

    checkpoint: Checkpoint
    originals: Mapping[str, str]

    @property
    def forward(self) -> Forward:
        return Forward(self.checkpoint, read_network(self.checkpoint))


def reduce(forward: Forward, reduction: Reduction) -> Remaining:
    """Nothing is copied: tensors lie where they lay, and are read in part."""
    whole, channels = forward.checkpoint, reduction.channels
    kept = [layer for layer in forward.network.layers if layer not in reduction.removed]
    settings = kept_settings(whole, forward.network, kept)
    decoder = read_decoder(settings, whole.decoder.name, str(whole.path))
    if channels:
        widths = [_width(forward, layer, channels) for layer in kept]
        decoder = _of_widths(decoder, widths)
        told = widths[0] if len(set(widths)) == 1 else widths
        settings = _updated(settings, {"intermediate_size": told})
    originals = dict(renumbered(whole.decoder, kept))
    tensors = {
        f"{new}{ending}": whole.tensors[f"{old}{ending}"]
        for new, old in originals.items()
        # Eight-bit floats have scales of their own.
        for ending in ("", SCALE_ENDING)
        if f"{old}{ending}" in whole.tensors
    }
    for new, old in originals.items():
        layer, side = layer_of(old), FEED.get(part_of(old))
        # The bias that comes after all channels is none of theirs.
        is_cut = side == "rows" or len(tensors[new].shape) == 2
        if side and is_cut and layer is not None and layer in channels:
            tensors[new] = replace(tensors[new], cut=Cut(**{side: channels[layer]}))
    return Remaining(Checkpoint(whole.path, decoder, tensors, settings), originals)


def renumbered(decoder: Decoder, kept: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Every tensor that stays, by its new name and its old one."""
    for weights in decoder.weights:
        if "{layer}" not in weights.name:
            yield from ((name, name) for name, _ in weights.names())
            continue
        assert len(weights.layers) == decoder.layers, "all layers are alike"
        for at, layer in enumerate(kept):
            pair = (replace(weights, layers=range(n, n + 1)).names() for n in (at, layer))
            for (new, _), (old, _) in zip(*pair, strict=True):
                yield new, old


def kept_settings(checkpoint: Checkpoint, network: Network, kept: Sequence[int]) -> Settings:
    """The configuration with fewer layers, and with what would follow from their numbers said."""
    changes: dict[str, object] = {"num_hidden_layers": len(kept)}
    if len(set(network.windows)) > 1 or "layer_types" in _of_text(checkpoint.settings):
        windows = [network.windows[layer] for layer in kept]
        changes["layer_types"] = [FULL if window is None else SLIDING for window in windows]
    return _updated(checkpoint.settings, changes)


def _of_text(settings: Settings) -> Settings:
    """Those of the text part, where there are others."""
    text = settings.get("text_config")
    return text if isinstance(text, dict) else settings


def _updated(settings: Settings, changes: Mapping[str, object]) -> Settings:
    text = {**_of_text(settings), **changes}
    return {**settings, "text_config": text} if "text_config" in settings else text


def part_of(name: str) -> str:
    """The module that a tensor belongs to: "up_proj" of "model.layers.0.mlp.up_proj.weight"."""
    return name.split(".")[-2]


def with_channels(weights: Weights, width: int) -> Weights:
    """A feed-forward part's tensors with so many channels; others as they are."""
    match FEED.get(part_of(weights.name)):
        case "rows":
            return replace(weights, outputs=width)
        case "columns" if weights.role is not Role.VECTOR:
            return replace(weights, inputs=width)
    return weights


def energies(checkpoint: Checkpoint, importances: Mapping[str, Floats], name: str) -> Floats:
    """How much a matrix draws from each of its inputs: their mean squares times its own."""
    squares = sum(
        np.square(some).sum(axis=0, dtype=np.float64) for some in pieces(name, checkpoint.tensors)
    )
    found: Floats = (squares * importances[name]).astype(np.float32)
    return found


def most_important(scores: Floats, count: int) -> Numbers:
    """Their numbers in order; of equal ones the first."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def down_of(layer: int) -> str:
    """The matrix whose inputs are the channels of a feed-forward part."""
    return f"model.layers.{layer}.mlp.down_proj.weight"


def _width(forward: Forward, layer: int, channels: Mapping[int, Numbers]) -> int:
    if layer in channels:
        return len(channels[layer])
    return forward.checkpoint.tensors[down_of(layer)].read_shape[1]


def _of_widths(decoder: Decoder, widths: Sequence[int]) -> Decoder:
    """With feed-forward parts of their own widths."""
    weights: list[Weights] = []
    for each in decoder.weights:
        if part_of(each.name) not in FEED:
            weights.append(each)
            continue
        weights += [
            replace(with_channels(each, widths[layer]), layers=range(layer, layer + 1))
            for layer in each.layers
        ]
    return replace(decoder, weights=tuple(weights))
