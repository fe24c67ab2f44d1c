"""A text as a network sees it: stretches of tokens, all of one length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# [stretches, tokens]
Tokens = NDArray[np.int64]


def sequences_of(tokens: Sequence[int], length: int, count: int, first: int | None) -> Tokens:
    """So many stretches of a text, spread over it, each begun with `first` if there is one."""
    own = length - (first is not None)
    count = min(count, len(tokens) // own)
    starts = np.linspace(0, len(tokens) - own, count).astype(int)
    begun = [] if first is None else [first]
    return np.array([[*begun, *tokens[at : at + own]] for at in starts], np.int64)
