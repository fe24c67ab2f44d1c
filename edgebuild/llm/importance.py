"""How much each input of a matrix counts when its weights are rounded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgebuild.llm._kernels_numpy import Floats
from edgebuild.llm.checkpoint import Checkpoint, StoredTensor, read_header
from edgebuild.llm.rows import read_vector
from edgebuild.llm.store import Entry
from edgebuild.vocabulary.errors import InvalidCheckpoint

# Of the mean. Nothing counts for nothing, or its rounding would be left to chance.
LEAST = np.float32(1e-3)


@dataclass(frozen=True)
class Importances:
    """By what was measured of a tensor's inputs, else by the norm before it, else all alike.

    `name` tells different ones apart.
    """

    checkpoint: Checkpoint
    name: str = "norms"
    given: Mapping[str, StoredTensor] = field(default_factory=dict)

    def of(self, entry: Entry) -> Floats:
        """A number for each input, one on average.

        Raises:
            InvalidCheckpoint: what was given is not a number of zero or more for each input.
        """
        if entry.name in self.given:
            return _evened(self._given(entry))
        if not entry.norm:
            return np.ones(entry.inputs, np.float32)
        # A norm's outputs are of one size before it multiplies them; errors count squared.
        gains = read_vector(entry.norm, self.checkpoint.tensors)
        return _evened(np.square(gains + np.float32(self.checkpoint.decoder.norm_offset)))

    def _given(self, entry: Entry) -> Floats:
        values = read_vector(entry.name, self.given)
        if len(values) != entry.inputs or not (np.isfinite(values) & (values >= 0)).all():
            raise InvalidCheckpoint(
                f"{self.given[entry.name].file}: the importance of {entry.name} must be "
                f"{entry.inputs} numbers of zero or more"
            )
        return values


def choose_importances(checkpoint: Checkpoint, file: Path | None) -> Importances:
    """Those in a .safetensors file, by the names of the tensors; without one, by the norms.

    Raises:
        InvalidCheckpoint: the file cannot be read, or names no tensor of the checkpoint.
    """
    if file is None:
        return Importances(checkpoint)
    given = {tensor.name: tensor for tensor in read_header(file)}
    if not given.keys() & checkpoint.tensors.keys():
        raise InvalidCheckpoint(f"{file} names no tensor of {checkpoint.path}")
    with file.open("rb") as opened:
        name = hashlib.file_digest(opened, "sha256").hexdigest()
    return Importances(checkpoint, name, given)


def _evened(values: Floats) -> Floats:
    mean = np.float32(values.mean())
    if not np.isfinite(mean) or mean <= 0:
        return np.ones_like(values)
    found: Floats = np.maximum(values / mean, LEAST)
    return found
