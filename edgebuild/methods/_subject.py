"""A network and its data as a key, for what is found once and used by many changes."""

from __future__ import annotations

import torch
from torch import nn

from edgebuild.vocabulary.workload import Workload


class Subject:
    """A network and its data as a key: equal only as long as no tensor has changed."""

    def __init__(self, network: nn.Module, workload: Workload) -> None:
        self.network, self.workload = network, workload
        tensors = [*network.named_parameters(), *network.named_buffers()]
        state = tuple((name, tensor.data_ptr(), _version(tensor)) for name, tensor in tensors)
        data = tuple(map(id, workload.example)), id(workload.calibration)
        self._key = id(network), state, data

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Subject) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def _version(tensor: torch.Tensor) -> int:
    """Counts the changes in place; tensors made in inference mode have no such counter."""
    return 0 if tensor.is_inference() else tensor._version
