"""A network that was never switched to evaluation."""

import torch
from torch import nn

from edgebuild.vocabulary.workload import Workload


def workload() -> Workload:
    pairs = [(torch.ones(1, 4), 0)]
    return Workload(
        name="tiny",
        network=nn.Sequential(nn.Linear(4, 2), nn.Dropout()),
        example=(torch.ones(1, 4),),
        calibration=pairs,
        validation=pairs,
        test=pairs,
    )
