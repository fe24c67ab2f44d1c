"""An example with a hole in it."""

import torch
from torch import nn

from edgebuild.vocabulary.workload import Workload


def workload() -> Workload:
    pairs = [(torch.ones(1, 4), 0)]
    return Workload(
        name="tiny",
        network=nn.Linear(4, 2).eval(),
        example=(torch.full((1, 4), torch.nan),),
        calibration=pairs,
        validation=pairs,
        test=pairs,
    )
