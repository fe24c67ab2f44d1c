"""A network that loses the batch dimension."""

import torch
from torch import nn

from edgebuild.vocabulary.workload import Workload


class Summed(nn.Module):
    def forward(self, row: torch.Tensor) -> object:
        return row.sum()


def workload() -> Workload:
    pairs = [(torch.ones(1, 4), 0)]
    return Workload(
        name="tiny",
        network=Summed().eval(),
        example=(torch.ones(1, 4),),
        calibration=pairs,
        validation=pairs,
        test=pairs,
    )
