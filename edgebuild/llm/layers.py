"""Leaves whole layers out of a decoder: what stays, under new numbers, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from edgebuild.llm.checkpoint import Checkpoint
from edgebuild.llm.config import Settings, read_decoder
from edgebuild.llm.forward import Forward
from edgebuild.llm.mixed import Mixed, Site, choose
from edgebuild.llm.network import SLIDING, Network, read_network
from edgebuild.llm.sensitivity import Reference
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.decoder import Decoder
from edgebuild.vocabulary.units import Bytes

FULL = "full_attention"
# Below so many bits a weight, leaving a layer out may lose less than rounding all more coarsely.
FEW_BITS = 4
# How often layers are chosen anew, after what several of them cost together was seen.
ROUNDS = 4


@dataclass(frozen=True)
class Remaining:
    """A checkpoint without some of its layers, with its tensors' names in the whole one."""

    checkpoint: Checkpoint
    originals: Mapping[str, str]

    @property
    def forward(self) -> Forward:
        return Forward(self.checkpoint, read_network(self.checkpoint))


def without_layers(forward: Forward, removed: Sequence[int]) -> Remaining:
    """A view: nothing is copied, and tensors lie where they lay."""
    whole = forward.checkpoint
    kept = [layer for layer in forward.network.layers if layer not in removed]
    settings = kept_settings(whole, forward.network, kept)
    originals = dict(renumbered(whole.decoder, kept))
    decoder = read_decoder(settings, whole.decoder.name, str(whole.path))
    tensors = {new: whole.tensors[old] for new, old in originals.items()}
    return Remaining(Checkpoint(whole.path, decoder, tensors, settings), originals)


def renumbered(decoder: Decoder, kept: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Every tensor that stays, by its new name and its old one."""
    for weights in decoder.weights:
        if "{layer}" not in weights.name:
            yield from ((name, name) for name, _ in weights.names())
            continue
        for at, layer in enumerate(kept):
            pair = (replace(weights, layers=range(n, n + 1)).names() for n in (at, layer))
            for (new, _), (old, _) in zip(*pair, strict=True):
                yield new, old


def kept_settings(checkpoint: Checkpoint, network: Network, kept: Sequence[int]) -> Settings:
    """The configuration with fewer layers, and with what would follow from their numbers said."""
    settings = {**checkpoint.settings, "num_hidden_layers": len(kept)}
    if len(set(network.windows)) > 1 or "layer_types" in settings:
        windows = [network.windows[layer] for layer in kept]
        settings["layer_types"] = [FULL if window is None else SLIDING for window in windows]
    return settings


def choose_with_layers(
    sites: Sequence[Site], limit: Bytes, reference: Reference, progress: Progress
) -> Mixed:
    """Bits by matrix, and layers left out where the limit leaves few bits.

    What each layer costs is measured by itself, and what several cost together when they have been
    chosen: it is mostly more than their sum.

    Raises:
        InvalidQuantity: the limit is too small even so.
    """
    if not _is_tight(sites, limit):
        return choose(sites, limit)
    forward, costs = reference.forward, {}
    layers = forward.network.layers
    with progress.step("see what layers cost", len(layers)) as bar:
        for layer in layers:
            costs[layer] = reference.divergence(without_layers(forward, [layer]).forward)
            bar.advance()
    tried: dict[tuple[int, ...], float] = {}
    best: Mixed | None = None
    for _ in range(ROUNDS):
        mixed = choose(sites, limit, removals=costs)
        removed = mixed.removed
        if removed in tried:
            break
        thought = sum(costs[layer] for layer in removed)
        seen = reference.divergence(without_layers(forward, removed).forward) if removed else 0.0
        tried[removed] = mixed.loss - thought + seen
        if best is None or tried[removed] < tried[best.removed]:
            best = mixed
        costs |= {layer: costs[layer] * seen / max(thought, 1e-30) for layer in removed}
    assert best is not None
    return best


def _is_tight(sites: Sequence[Site], limit: Bytes) -> bool:
    """Whether the limit leaves fewer bits than there are good kernels for."""
    least = 0
    for site in sites:
        fine = [each.stored for each in site.roundings if each.layout.bits >= FEW_BITS]
        least += min(fine, default=0)
    return limit < least
