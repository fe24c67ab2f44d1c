"""Tells of every matrix how it is stored, and what is known of what that costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgebuild.llm.sites import places
from edgebuild.vocabulary.decoder import Decoder, Weights
from edgebuild.vocabulary.language_model import StoredMatrix
from edgebuild.vocabulary.units import Bytes
from edgebuild.vocabulary.weight_format import WeightFormat

IN_LAYER, ONCE = "model.layers.{layer}.", "model."
Stored = Mapping[str, WeightFormat]


@dataclass(frozen=True)
class Costs:
    """What a text has shown of the matrices, in nats of KL a token; empty where none was given.

    Attributes:
        sensitivities: what a relative squared error of one costs, by the tensors' names.
        losses: what the chosen layouts are expected to cost, by the first tensor of each site.
    """

    sensitivities: Mapping[str, float] = field(default_factory=dict)
    losses: Mapping[str, float] = field(default_factory=dict)


def stored_matrices(decoder: Decoder, stored: Stored, costs: Costs) -> tuple[StoredMatrix, ...]:
    """The matrices of every layer, in the order of the checkpoint's own description.

    `stored` is how each tensor is stored, by its name.
    """
    return tuple(
        _stored(weights, [name for name, _ in names], stored, costs)
        for weights, names in places(decoder)
    )


def _stored(weights: Weights, names: Sequence[str], stored: Stored, costs: Costs) -> StoredMatrix:
    layout = stored[names[0]]
    return StoredMatrix(
        kind=_kind(weights.name),
        layer=weights.layers[0] if weights.name.startswith(IN_LAYER) else None,
        layout=str(layout),
        count=len(names),
        elements=weights.elements,
        size=Bytes(len(names) * layout.size(weights.outputs, weights.inputs)),
        sensitivity=costs.sensitivities.get(names[0]),
        loss=costs.losses.get(names[0]),
    )


def _kind(name: str) -> str:
    """ "mlp.down_proj" of "model.layers.{layer}.mlp.down_proj.weight"."""
    own = name.removeprefix(IN_LAYER).removeprefix(ONCE).removesuffix(".weight")
    return own.replace("{expert}", "*")
