"""edgebuild builds a trained PyTorch model for a named device and proves that it fits."""

from edgebuild.build import build
from edgebuild.vocabulary.target import Budget, Target
from edgebuild.vocabulary.workload import Workload

__all__ = ["Budget", "Target", "Workload", "build"]
