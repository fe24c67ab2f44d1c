"""A layer that is called twice, and layers with equal weights, stay what they are."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Workshop, export, outputs_of, uniform
from torch import Tensor, nn
from zoo import Specimen

from edgebuild import catalog
from edgebuild.vocabulary.artifact import Arithmetic
from edgebuild.vocabulary.precision import Precision


class CalledTwice(nn.Module):
    """Applies one square layer twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(16, 16)

    def forward(self, row: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(row)))


class ConvolvedTwice(nn.Module):
    """Applies one convolution twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, row: Tensor) -> Tensor:
        image = row.reshape(-1, 16, 1, 1).expand(-1, 16, 4, 4)
        return self.layer(torch.relu(self.layer(image))).flatten(1)


class EqualLayers(nn.Module):
    """Two layers that start as copies, as those of a fresh nn.TransformerEncoder do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(16, 16)
        self.second = copy.deepcopy(self.first)
        self.head = nn.Linear(16, 8)

    def forward(self, row: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(row)))))


@pytest.mark.parametrize("format_", catalog.names("exporters"))
@pytest.mark.parametrize("network", [CalledTwice, ConvolvedTwice, EqualLayers])
@pytest.mark.parametrize(
    "precision", [Precision.INT8_DYNAMIC, Precision.INT8_STATIC, Precision.INT4_WEIGHTS]
)
def test_integer_artifacts_compute_what_the_network_does(
    workshop: Workshop,
    format_: str,
    network: type[nn.Module],
    precision: Precision,
    tmp_path: Path,
) -> None:
    subject = workshop.study(Specimen(network.__name__, network().eval(), (torch.zeros(1, 16),)))
    recipe = uniform(subject.program, format_, precision)
    artifact = export(subject, recipe, tmp_path)
    (wanted,), (got,) = subject.expected, outputs_of(artifact, subject.held_out)
    noise, signal = np.square(wanted - got).sum(), np.square(wanted).sum()
    assert 10 * np.log10(signal / noise) > (10 if precision is Precision.INT4_WEIGHTS else 20)
    runs = catalog.runtime(artifact.runtime).kernels(artifact, subject.held_out)
    integer = {site for r in runs if r.arithmetic is Arithmetic.INTEGER for site in r.sites}
    assert integer == {site.path for site, p in recipe.precisions.items() if p.is_integer}
