"""A network whose layer does not know its input yet."""

import torch
from torch import nn

from edgebuild.vocabulary.workload import Workload


def workload() -> Workload:
    pairs = [(torch.ones(1, 4), 0)]
    return Workload(
        name="tiny",
        network=nn.LazyLinear(2).eval(),
        example=(torch.ones(1, 4),),
        calibration=pairs,
        validation=pairs,
        test=pairs,
    )
