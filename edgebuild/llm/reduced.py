"""Chooses bits by matrix together with layers that go and feed-forward parts that narrow.

The losses of all are nats of divergence on a text. What is taken out is measured piece by piece,
and as a whole when it has been chosen: together, pieces mostly cost more than their sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from edgebuild.llm._kernels_numpy import Floats
from edgebuild.llm._knapsack import MOST_REMOVED
from edgebuild.llm.checkpoint import Numbers
from edgebuild.llm.limit import Limit
from edgebuild.llm.mixed import Mixed, choose
from edgebuild.llm.reduction import (
    FEED,
    MULTIPLE,
    NOTHING,
    Reduction,
    down_of,
    energies,
    most_important,
    part_of,
    reduce,
    with_channels,
)
from edgebuild.llm.sensitivity import STRETCHES, Reference, stretch_of
from edgebuild.llm.sites import LayerChoice, Site, places, rounding_of
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.decoder import Decoder
from edgebuild.vocabulary.errors import InvalidQuantity

# The shares of a feed-forward part's channels that may stay.
SHARES = (0.75, 0.5)
# Where a limit leaves fewer bits a weight, taking something out may lose less than rounding all of
# it more coarsely; above, it was never seen to.
FEW_BITS = 4
# How often is chosen anew, after what was chosen has been measured as a whole.
ROUNDS = 4
LEAST = 1e-9

# The channels that stay, by layer, for each share of them.
Channels = Mapping[float, Mapping[int, Numbers]]


def choose_reduced(
    sites: Sequence[Site],
    limit: Limit,
    reference: Reference,
    importances: Mapping[str, Floats],
    progress: Progress,
) -> tuple[Mixed, Reduction]:
    """The mix that loses least, and what is taken out for it; nothing where the limit is wide.

    Args:
        sites: of all matrices, with losses in nats.
        importances: mean squares of each matrix's inputs on a text.

    Raises:
        InvalidQuantity: the limit is too small even so.
    """
    if not is_tight(sites, limit):
        return choose(sites, limit), NOTHING
    channels = _channels(reference, importances)
    costs = _costs(reference, channels, progress)
    sites = _narrowed(sites, reference.forward.network.decoder, channels)
    found: dict[frozenset[LayerChoice], tuple[float, Mixed, Reduction]] = {}
    # Where that keeps the limit, to take nothing out is one of the choices.
    with suppress(InvalidQuantity):
        mixed = choose(sites, limit)
        found[frozenset()] = mixed.loss, mixed, NOTHING
    for _ in range(ROUNDS):
        mixed = choose(sites, limit, reductions=costs)
        chosen = frozenset(mixed.reduced)
        if chosen in found:
            break
        reduction = _reduction(chosen, channels)
        thought, seen = sum(mixed.reduced.values()), _divergence(reference, reduction)
        found[chosen] = mixed.loss - thought + seen, mixed, reduction
        costs |= {each: costs[each] * seen / thought for each in chosen}
    _, mixed, reduction = min(found.values(), key=lambda one: one[0])
    return mixed, reduction


def is_tight(sites: Sequence[Site], limit: Limit) -> bool:
    """Whether a limit leaves fewer bits than there are good kernels for."""
    least = 0
    for site in sites:
        whole = [each for each in site.roundings if not each.rank]
        fine = [each.stored for each in whole if each.layout.bits >= FEW_BITS]
        least += min(fine, default=0)
    return limit.left < least


def _channels(reference: Reference, importances: Mapping[str, Floats]) -> Channels:
    """The most important channels of each layer, for each share that leaves some out."""
    forward = reference.forward
    ranked = {
        layer: energies(forward.checkpoint, importances, down_of(layer))
        for layer in forward.network.layers
    }
    width = len(ranked[0])
    counts = {share: max(int(share * width / MULTIPLE + 0.5), 1) * MULTIPLE for share in SHARES}
    return {
        share: {layer: most_important(each, count) for layer, each in ranked.items()}
        for share, count in counts.items()
        if count < width
    }


def _costs(
    reference: Reference, channels: Channels, progress: Progress
) -> dict[LayerChoice, float]:
    """Of each layer without the others, and of the widths of layers that lie near each other."""
    layers = reference.forward.network.layers
    costs, may_go = {}, layers if MOST_REMOVED * len(layers) >= 1 else ()
    with progress.step("see what taking out costs", len(layers) + STRETCHES * len(channels)) as bar:
        for layer in may_go:
            costs[LayerChoice(layer, 0.0)] = _divergence(reference, Reduction((layer,)))
            bar.advance()
        for share, by_layer in channels.items():
            for stretch in _stretches(layers):
                some = {layer: by_layer[layer] for layer in stretch}
                cost = _divergence(reference, Reduction(channels=some)) / len(stretch)
                costs |= {LayerChoice(layer, share): cost for layer in stretch}
                bar.advance()
    return costs


def _stretches(layers: range) -> Iterator[list[int]]:
    for stretch in range(STRETCHES):
        found = [layer for layer in layers if stretch_of(layer, len(layers)) == stretch]
        if found:
            yield found


def _divergence(reference: Reference, reduction: Reduction) -> float:
    """Above zero: halves of logarithms are not exact."""
    return max(reference.divergence(reduce(reference.forward, reduction).forward), LEAST)


def _reduction(chosen: frozenset[LayerChoice], channels: Channels) -> Reduction:
    return Reduction(
        tuple(sorted(each.layer for each in chosen if each.goes)),
        {each.layer: channels[each.share][each.layer] for each in chosen if not each.goes},
    )


def _narrowed(sites: Sequence[Site], decoder: Decoder, channels: Channels) -> tuple[Site, ...]:
    """With what feed-forward matrices take at fewer channels."""
    found = []
    for site, (weights, _) in zip(sites, places(decoder), strict=True):
        if site.layer is None or part_of(site.names[0]) not in FEED:
            found.append(site)
            continue
        narrow = {}
        for share, by_layer in channels.items():
            smaller = with_channels(weights, len(by_layer[site.layer]))
            narrow[share] = tuple(
                rounding_of(smaller, len(site.names), each.layout, each.loss)
                for each in site.roundings
                if not each.rank
            )
        found.append(replace(site, narrowed=narrow))
    return tuple(found)
