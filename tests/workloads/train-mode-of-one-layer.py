"""A network in eval mode, but for its dropout."""

import torch
from torch import nn

from edgebuild.vocabulary.workload import Workload


def workload() -> Workload:
    network = nn.Sequential(nn.Linear(4, 2), nn.Dropout()).eval()
    network[1].train()
    pairs = [(torch.ones(1, 4), 0)]
    return Workload(
        name="tiny",
        network=network,
        example=(torch.ones(1, 4),),
        calibration=pairs,
        validation=pairs,
        test=pairs,
    )
