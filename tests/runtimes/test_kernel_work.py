"""What kernels had to do is read as one counts it by hand, in both formats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Workshop, export, uniform
from torch import Tensor, nn
from zoo import Specimen

from edgebuild import catalog
from edgebuild.vocabulary.artifact import KernelWork
from edgebuild.vocabulary.precision import Precision

SIDE, INPUTS, WIDE, OUTPUTS = 12, 16, 32, 48
FORMATS = ("onnx", "tflite")


class Counted(nn.Module):
    """One layer of each form, and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.full = nn.Conv2d(INPUTS, WIDE, 3, 1, 1)
        self.depthwise = nn.Conv2d(WIDE, WIDE, 3, 1, 1, groups=WIDE)
        self.pointwise = nn.Conv2d(WIDE, OUTPUTS, 1)
        self.linear = nn.Linear(OUTPUTS, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.full(x))
        y = self.pointwise(torch.relu(self.depthwise(y)) + y)
        out: Tensor = self.linear(torch.relu(y).mean((2, 3)))
        return out


# macs, bytes of weights without the bias, numbers read, numbers written
PLACES = SIDE * SIDE
BY_HAND = {
    "convolution": (PLACES * 9 * INPUTS * WIDE, 9 * INPUTS * WIDE, PLACES * INPUTS, PLACES * WIDE),
    "depthwise": (PLACES * 9 * WIDE, 9 * WIDE, PLACES * WIDE, PLACES * WIDE),
    "convolution 1x1": (PLACES * WIDE * OUTPUTS, WIDE * OUTPUTS, PLACES * WIDE, PLACES * OUTPUTS),
    "linear of one row": (OUTPUTS * 10, OUTPUTS * 10, OUTPUTS, 10),
}


def works_of(
    workshop: Workshop,
    network: nn.Module,
    example: Tensor,
    form: str,
    precision: Precision,
    folder: Path,
) -> list[KernelWork]:
    subject = workshop.study(Specimen("counted", network.eval(), (example,)))
    artifact = export(subject, uniform(subject.program, form, precision), folder)
    runs = list(catalog.runtime(artifact.runtime).kernels(artifact, subject.held_out))
    assert all(run.work is not None for run in runs)
    return [run.work for run in runs if run.work is not None]


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8_STATIC])
@pytest.mark.parametrize("form", FORMATS)
def test_layers_have_the_work_that_is_counted_by_hand(
    workshop: Workshop, form: str, precision: Precision, tmp_path: Path
) -> None:
    works = works_of(
        workshop, Counted(), torch.randn(1, INPUTS, SIDE, SIDE), form, precision, tmp_path
    )
    size = 4 if precision is Precision.FP32 else 1
    for name, (macs, weights, read, written) in BY_HAND.items():
        (found,) = [work for work in works if work.form == name]
        assert found.numerics == precision
        assert found.macs == macs
        # Biases, scales and zero points are small beside them.
        assert size * weights <= found.weights <= size * weights + 16 * 60
        assert (found.read, found.written) == (size * read, size * written)


@pytest.mark.parametrize("form", FORMATS)
def test_what_lies_between_layers_has_bytes_and_no_macs(
    workshop: Workshop, form: str, tmp_path: Path
) -> None:
    works = works_of(
        workshop, Counted(), torch.randn(1, INPUTS, SIDE, SIDE), form, Precision.FP32, tmp_path
    )
    sums = [work for work in works if work.form.upper() == "ADD"]
    # onnxruntime may compute the sum inside a convolution, which reads it then.
    for found in sums:
        assert found.macs == 0
        assert (found.read, found.written) == (8 * PLACES * WIDE, 4 * PLACES * WIDE)


class Tokens(nn.Module):
    """A layer over tokens, and their products with each other."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(24, 40)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        out: Tensor = (y @ y.transpose(1, 2)).softmax(-1)
        return out


@pytest.mark.parametrize("form", FORMATS)
def test_a_product_of_activations_is_no_layer(
    workshop: Workshop, form: str, tmp_path: Path
) -> None:
    works = works_of(workshop, Tokens(), torch.randn(1, 6, 24), form, Precision.FP32, tmp_path)
    (layer,) = [work for work in works if work.form == "linear"]
    assert (layer.macs, layer.inputs, layer.outputs) == (6 * 24 * 40, 24, 40)
    (product,) = [work for work in works if "MATMUL" in work.form.upper()]
    assert (product.macs, product.weights) == (6 * 6 * 40, 0)
    assert product.read == 2 * 4 * 6 * 40


def test_the_profile_scripts_need_nothing_of_edgebuild() -> None:
    """They are pushed to devices without it; the runner that comes along needs nothing either."""
    folder = Path(catalog.__file__).parent / "runtimes"
    for name in ("_onnxruntime_profile.py", "_litert_profile.py"):
        assert "edgebuild" not in (folder / name).read_text().replace("edgebuild-", "")
