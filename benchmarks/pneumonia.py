"""Workload: tell pneumonia from a healthy chest in X-rays of children, at 28x28 pixels.

A residual network of 77 thousand parameters, trained here in a few minutes on PneumoniaMNIST of
MedMNIST v2, with its official splits. Whoever always says pneumonia is right on 0.625 of the test
images. The few images of validation that stand in the training split too are left out. Test is
known to be harder than validation: scores between the two don't compare. Not for diagnosis.

The data are in no package: pneumoniamnist.npz lies where the package medmnist keeps it,
in ~/.medmnist, or in the folder that EDGEBUILD_DATA names.
"""

from pathlib import Path

import labeled_images
import numpy as np
import torch
import training
from data_files import data_file
from labeled_images import LabeledImages, is_in
from prepared import Tensors, accuracy, prepared
from torch import Tensor, nn

from edgebuild import Workload

EPOCHS = 8
NAME = "pneumoniamnist.npz"
ORIGIN = "MedMNIST v2 (medmnist.com, or the package medmnist, which downloads it)"
NOTICES = {
    "PneumoniaMNIST": "CC-BY-4.0. Yang et al. 2023, doi:10.1038/s41597-022-01721-8, from "
    "Kermany et al. 2018, doi:10.1016/j.cell.2018.02.010.",
}


def workload() -> Workload:
    file = data_file(NAME, ORIGIN, usual=[Path.home() / ".medmnist" / NAME])
    images, labels = _split(file, "train")
    seen, seen_labels = _split(file, "val")
    distinct = ~is_in(seen, images)

    def train() -> Tensors:
        return training.trained(network, images, labels, _augmented, EPOCHS)

    classifier = network()
    sources = (__file__, labeled_images.__file__, training.__file__, str(file))
    classifier.load_state_dict(prepared(train, sources, ("numpy",)))
    calibration = LabeledImages(images, labels, _normalized)
    return Workload(
        name="pneumonia",
        network=classifier.eval(),
        example=(calibration[0][0],),
        calibration=calibration,
        validation=LabeledImages(seen[distinct], seen_labels[distinct], _normalized),
        test=LabeledImages(*_split(file, "test"), _normalized),
        score=accuracy,
        notices=NOTICES,
    )


def network() -> nn.Sequential:
    """A small ResNet (He et al. 2016) with random weights: (N, 1, 28, 28) to (N, 2)."""
    return nn.Sequential(
        *_convolution(1, 16),
        nn.ReLU(),
        Residual(16, 16),
        Residual(16, 32, stride=2),
        Residual(32, 64, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 2),
    )


class Residual(nn.Module):
    """Two convolutions beside a shortcut, which is a projection where the shape changes."""

    def __init__(self, channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_convolution(channels, out_channels, stride=stride),
            nn.ReLU(),
            *_convolution(out_channels, out_channels),
        )
        is_same = stride == 1 and channels == out_channels
        projection = _convolution(channels, out_channels, kernel=1, stride=stride)
        self.shortcut = nn.Sequential(*(() if is_same else projection))
        self.activation = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.activation(self.layers(inputs) + self.shortcut(inputs))
        return outputs


def _convolution(
    channels: int, out_channels: int, kernel: int = 3, stride: int = 1
) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels)]


def _split(file: Path, name: str) -> tuple[Tensor, Tensor]:
    """Images (count, 1, 28, 28) uint8 and labels (count,), 1 for pneumonia."""
    with np.load(file) as arrays:
        images = torch.from_numpy(arrays[f"{name}_images"])[:, None]
        return images, torch.from_numpy(arrays[f"{name}_labels"]).flatten().long()


def _normalized(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def _augmented(images: Tensor) -> Tensor:
    """Moved a little, lighter or darker. Never mirrored: the heart is on the left."""
    return training.shaded(training.moved(_normalized(images)))
