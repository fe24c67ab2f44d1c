"""A network that returns a label instead of numbers."""

import torch
from torch import nn

from edgebuild.vocabulary.workload import Workload


class Named(nn.Module):
    def forward(self, row: torch.Tensor) -> object:
        return {"scores": row, "best": "cat"}


def workload() -> Workload:
    pairs = [(torch.ones(1, 4), 0)]
    return Workload(
        name="tiny",
        network=Named().eval(),
        example=(torch.ones(1, 4),),
        calibration=pairs,
        validation=pairs,
        test=pairs,
    )
