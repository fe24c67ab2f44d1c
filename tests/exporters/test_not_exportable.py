"""An operator that a format lacks is named, and the other format goes on without it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Workshop, export, uniform
from torch import Tensor, nn
from zoo import Specimen

from edgebuild.vocabulary.errors import NotExportable
from edgebuild.vocabulary.precision import Precision


class Distances(nn.Module):
    """Asks for an operator that ONNX lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, points: Tensor) -> Tensor:
        return torch.cdist(self.layer(points), points)


class RunningTotal(nn.Module):
    """Asks for an operator that TFLite lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, series: Tensor) -> Tensor:
        return torch.logcumsumexp(self.layer(series), dim=1)


CASES = [
    (Distances, "onnx", "aten._cdist_forward", "tflite"),
    (RunningTotal, "tflite", "aten.logcumsumexp", "onnx"),
]


@pytest.mark.parametrize(("network", "lacking", "operator", "other"), CASES)
def test_the_lacking_format_names_the_operator_and_the_other_exports(
    workshop: Workshop,
    network: type[nn.Module],
    lacking: str,
    operator: str,
    other: str,
    tmp_path: Path,
) -> None:
    specimen = Specimen(network.__name__, network().eval(), (torch.randn(1, 8),))
    subject = workshop.study(specimen)
    with pytest.raises(NotExportable) as refused:
        export(subject, uniform(subject.program, lacking, Precision.FP32), tmp_path)
    assert str(refused.value) == f"{lacking}: no operator for {operator}"
    artifact = export(subject, uniform(subject.program, other, Precision.FP32), tmp_path)
    assert artifact.path.exists()
