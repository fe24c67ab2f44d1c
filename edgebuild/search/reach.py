"""Says how far a network may diverge from the whole one before its score is out of reach."""

from __future__ import annotations

import math
from collections.abc import Iterable

from edgebuild.search.learn import FLOOR

# How much score may be lost for a network to be worth any time.
WITHIN_REACH = 0.1
# A smaller drop than this is no different from none.
LEAST_DROP = 0.001


def bearable(seen: Iterable[tuple[float, float]]) -> float:
    """The divergence, in nats, up to which scores stay within reach; infinite while all do.

    Interpolated in the logarithms, between what diverges most of all that stayed within reach and
    what comes next.

    Args:
        seen: of every candidate its divergence, in nats, and the score that it lost.
    """
    inside, outside = (0.0, 0.0), None
    for divergence, drop in sorted(seen):
        if drop <= WITHIN_REACH:
            inside, outside = (divergence, drop), None
        elif outside is None:
            outside = (divergence, drop)
    if outside is None:
        return math.inf
    near, far = (max(divergence, FLOOR) for divergence, _ in (inside, outside))
    least, most = max(inside[1], LEAST_DROP), outside[1]
    share = math.log(WITHIN_REACH / least) / math.log(most / least)
    return float(near * (far / near) ** share)
