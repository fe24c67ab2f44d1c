"""Which widths are worth offering, and which units stay at a width."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from edgebuild.methods._channel_groups import ChannelGroup


def units_kept(group: ChannelGroup, shares: Iterable[float], multiple: int) -> list[int]:
    """The numbers of units nearest to shares of the group, each once, the most first.

    Kernels work on `multiple` channels at a time: widths are multiples of it, or powers of two
    where they are below.
    """
    found = {units_at(group, share, multiple) for share in shares}
    return sorted((units for units in found if units < group.units), reverse=True)


def units_at(group: ChannelGroup, share: float, multiple: int) -> int:
    """The number of units nearest to a share; at least one, at most all."""
    channels = group.channels * share
    if channels >= multiple:
        channels = int(channels / multiple + 0.5) * multiple
    else:
        channels = 1 << max(int(channels).bit_length() - 1, 0)
    return min(max(int(channels / group.unit_channels + 0.5), 1), group.units)


def least_important(scores: Tensor, kept: int) -> list[int]:
    """The units that go when so many are kept; of equal ones the last."""
    order: list[int] = scores.argsort(descending=True, stable=True).tolist()
    return sorted(order[kept:])
