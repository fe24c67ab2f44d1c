"""A network whose training diverged."""

import torch
from torch import nn

from edgebuild.vocabulary.workload import Workload


def workload() -> Workload:
    network = nn.Linear(4, 2).eval()
    network.weight.data[0, 0] = torch.nan
    pairs = [(torch.ones(1, 4), 0)]
    return Workload(
        name="tiny",
        network=network,
        example=(torch.ones(1, 4),),
        calibration=pairs,
        validation=pairs,
        test=pairs,
    )
