"""A mistake that only numpy notices."""

import numpy as np


def workload() -> None:
    np.zeros(4).reshape(3, 3)
