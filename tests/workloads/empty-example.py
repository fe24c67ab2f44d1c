"""An example without inputs."""

import torch
from torch import nn

from edgebuild.vocabulary.workload import Workload


def workload() -> Workload:
    pairs = [(torch.ones(1, 4), 0)]
    return Workload(
        name="tiny",
        network=nn.Linear(4, 2).eval(),
        example=(),
        calibration=pairs,
        validation=pairs,
        test=pairs,
    )
