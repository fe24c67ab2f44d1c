"""A network that does not run."""

import torch
from torch import nn

from edgebuild.vocabulary.workload import Workload


class Broken(nn.Module):
    def forward(self, row: torch.Tensor) -> object:
        raise RuntimeError("the cable\nis not connected")


def workload() -> Workload:
    pairs = [(torch.ones(1, 4), 0)]
    return Workload(
        name="tiny",
        network=Broken().eval(),
        example=(torch.ones(1, 4),),
        calibration=pairs,
        validation=pairs,
        test=pairs,
    )
