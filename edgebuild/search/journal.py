"""Keeps what a search has decided, so that the same build goes on where it was cut off."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from edgebuild.search.proposal import Proposal


@dataclass(frozen=True)
class Round:
    """What one round tries, and the seconds that it took; None until it is finished.

    A finished round without proposals says that the search has ended; `ran_out_of_time` that it
    did so because its time was up.
    """

    proposals: tuple[Proposal, ...]
    seconds: float | None = None
    ran_out_of_time: bool = False


_FORM = TypeAdapter(tuple[Round, ...])


@dataclass(frozen=True)
class Journal:
    """The rounds of one search in a file; what was made and measured in them is in the cache.

    A search is guided by times that differ from run to run, so a second run repeats the first
    one's decisions instead of taking them anew: it is done in seconds, and comes to the same.
    """

    path: Path

    def read(self) -> tuple[Round, ...]:
        """The rounds so far, the last one perhaps unfinished; none where nothing can be read."""
        try:
            return _FORM.validate_json(self.path.read_bytes())
        except (OSError, ValidationError):
            return ()

    def write(self, rounds: Sequence[Round]) -> None:
        """Replaces the rounds, whole or not at all."""
        part = self.path.with_suffix(".part")
        part.write_bytes(_FORM.dump_json(tuple(rounds)))
        os.replace(part, self.path)
