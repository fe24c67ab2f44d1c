"""A network that returns no tensor."""

import torch
from torch import nn

from edgebuild.vocabulary.workload import Workload


class Empty(nn.Module):
    def forward(self, row: torch.Tensor) -> object:
        return ()


def workload() -> Workload:
    pairs = [(torch.ones(1, 4), 0)]
    return Workload(
        name="tiny",
        network=Empty().eval(),
        example=(torch.ones(1, 4),),
        calibration=pairs,
        validation=pairs,
        test=pairs,
    )
