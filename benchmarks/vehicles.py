"""Workload: tell a vehicle from the rest of the road in crops of 32x32 pixels.

A plain convolutional network of 278 thousand parameters, trained here in a few minutes. The crops
are cut from GTI and KITTI videos, where neighbors look alike: those of other videos than were
learned are held out, and half of their blocks are for validation, the other half for test. The few
crops that stand in two splits stay in one only: test before validation before training.

The data are in no package. EDGEBUILD_DATA names the folder of vehicles_32.npz, with the arrays
xtr and xte, (count, 32, 32, 3) uint8, and ytr and yte, (count,), 1 where there is a vehicle.
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

EPOCHS = 9
# Of each class's crops that are held out every second block of video is for validation.
BLOCKS = 10
ORIGIN = (
    "the vehicle detection project of Udacity's CarND (vehicles and non-vehicles, GTI and KITTI), "
    "scaled to 32x32"
)
NOTICES = {
    "Vehicle crops": "GTI vehicle image database, and KITTI (CC-BY-NC-SA-3.0: attribution, "
    "non-commercial use only, share alike), as released by Udacity's CarND vehicle detection "
    "project. Arrospide, Salgado and Nieto 2012, doi:10.1186/1687-6180-2012-2; Geiger, Lenz and "
    "Urtasun 2012, doi:10.1109/CVPR.2012.6248074.",
}


def workload() -> Workload:
    file = data_file("vehicles_32.npz", ORIGIN)
    images, labels, others, other_labels = _crops(file)
    learning, held_out, tested = _split(images, others, other_labels)

    def train() -> Tensors:
        return training.trained(network, images[learning], labels[learning], _augmented, EPOCHS)

    classifier = network()
    weights = prepared(
        train, (__file__, labeled_images.__file__, training.__file__, str(file)), ("numpy",)
    )
    classifier.load_state_dict(weights)
    calibration = LabeledImages(images[learning], labels[learning], _normalized)
    return Workload(
        name="vehicles",
        network=classifier.eval(),
        example=(calibration[0][0],),
        calibration=calibration,
        validation=LabeledImages(others[held_out], other_labels[held_out], _normalized),
        test=LabeledImages(others[tested], other_labels[tested], _normalized),
        score=accuracy,
        notices=NOTICES,
    )


def network() -> nn.Sequential:
    """Three stages of convolutions, with random weights: (N, 3, 32, 32) to (N, 2)."""
    return nn.Sequential(
        *_convolution(3, 32),
        nn.MaxPool2d(2),
        *_convolution(32, 64),
        *_convolution(64, 64),
        nn.MaxPool2d(2),
        *_convolution(64, 128),
        *_convolution(128, 128),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 2),
    )


def _convolution(channels: int, out_channels: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU()]


def _crops(file: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (count, 3, 32, 32) uint8 and labels (count,) to learn, then those held out."""
    with np.load(file) as arrays:
        images, labels, others, other_labels = (
            torch.from_numpy(arrays[name]) for name in ("xtr", "ytr", "xte", "yte")
        )
    first = [each.permute(0, 3, 1, 2).contiguous() for each in (images, others)]
    return first[0], labels.long(), first[1], other_labels.long()


def _split(images: Tensor, others: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The numbers of the images for training; of those held out for validation, and for test."""
    is_tested = torch.zeros(len(others), dtype=torch.bool)
    for label in torch.unique(labels):
        blocks = torch.tensor_split(torch.where(labels == label)[0], BLOCKS)
        is_tested[torch.cat(blocks[::2])] = True
    is_validating = ~is_tested & ~is_in(others, others[is_tested])
    learning = ~is_in(images, others)
    return torch.where(learning)[0], torch.where(is_validating)[0], torch.where(is_tested)[0]


def _normalized(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def _augmented(images: Tensor) -> Tensor:
    """Half of the batch mirrored, all of it moved a little, each lighter or darker."""
    inputs = _normalized(images)
    mirrored = torch.rand(len(inputs)) < 0.5
    inputs[mirrored] = inputs[mirrored].flip(-1)
    return training.shaded(training.moved(inputs))
