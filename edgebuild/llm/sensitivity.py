"""Measures on text what an error of a matrix costs: the divergence of the outputs.

Matrices of one kind that lie near each other are rounded coarsely together, and what the outputs
diverge is shared out by their errors: a network of hundreds of matrices takes some thirty runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from edgebuild.llm._kernels_numpy import Floats
from edgebuild.llm.forward import Forward, divergence, in_chunks, log_softmax
from edgebuild.llm.importance import Importances
from edgebuild.llm.sequences import Tokens
from edgebuild.llm.sites import LAYER, Site, survey
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.silence import Silence
from edgebuild.vocabulary.weight_format import WeightFormat

# Coarse enough to be seen, fine enough that errors still add up; blocks as long as rows allow.
COARSE = tuple(WeightFormat.parse(f"int4-g{block}-asym") for block in (128, 64, 32, 16))
# Into how many stretches of depth each kind of matrix is divided.
STRETCHES = 4
# Tokens of logits at once.
CHUNK = 64
# What cannot be told from nothing still costs something.
LEAST = 1e-6


class Reference:
    """What the float network says of some text, which others are compared with."""

    def __init__(self, forward: Forward, sequences: Tokens) -> None:
        self.forward, self._sequences = forward, sequences
        # As halves: a large vocabulary's take a quarter of a gigabyte for each thousand tokens.
        self._said = [some.astype(np.float16) for some in _logarithms(forward, sequences)]

    def divergence(self, other: Forward) -> float:
        """Nats of KL a token."""
        each = [
            divergence(said.astype(np.float32), found)
            for said, found in zip(self._said, _logarithms(other, self._sequences), strict=True)
        ]
        return float(np.concatenate(each).mean(dtype=np.float64))


def sensitivities(
    reference: Reference, importances: Importances, progress: Progress
) -> Mapping[str, float]:
    """Nats of KL a token for a relative squared error of one, by the name of a site's tensors.

    Errors are made, and told, without a search for scales. Sites that cannot be rounded are left
    out.
    """
    forward = reference.forward
    sites = survey(forward.checkpoint, importances, progress, COARSE, most=1)
    groups: dict[tuple[str, int], list[Site]] = {}
    for site in sites:
        if site.roundings:
            group = _group(site.names[0], forward.network.decoder.layers)
            groups.setdefault(group, []).append(site)
    found: dict[str, float] = {}
    with progress.step("see what errors cost", len(groups)) as bar:
        for alike in groups.values():
            coarse = {name: site.roundings[0].layout for site in alike for name in site.names}
            loss = sum(site.roundings[0].loss for site in alike)
            cost = reference.divergence(replace(forward, rounded=coarse)) / max(loss, LEAST)
            found.update(dict.fromkeys(coarse, max(cost, LEAST)))
            bar.advance()
    return found


def _group(name: str, layers: int) -> tuple[str, int]:
    """Its kind and the stretch of depth that it lies in."""
    match = LAYER.fullmatch(name)
    return (match[2], stretch_of(int(match[1]), layers)) if match else (name, 0)


def stretch_of(layer: int, layers: int) -> int:
    """Which stretch of depth a layer lies in."""
    return layer * STRETCHES // layers


def _logarithms(forward: Forward, sequences: Tokens) -> Iterator[Floats]:
    """Logarithms of the probabilities of all tokens, some at a time: [some, vocabulary]."""
    states = forward.states(sequences, Silence())
    flat = states.reshape(-1, states.shape[-1])
    for some in in_chunks(len(flat), CHUNK):
        yield log_softmax(forward.logits(flat[some]))
