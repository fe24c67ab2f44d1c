"""A split of labeled images: stored as bytes, handed out one by one as a network takes them."""

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset


class LabeledImages(Dataset[tuple[Tensor, NDArray[Any]]]):
    """Each item is one normalized image and its label, in a batch of one.

    Args:
        images: (count, channels, height, width), uint8.
        labels: (count,), whole numbers.
        normalized: turns a batch of images into the network's inputs.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, normalized: Callable[[Tensor], Tensor]
    ) -> None:
        self.images, self.labels, self.normalized = images, labels, normalized

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, NDArray[Any]]:
        return self.normalized(self.images[index][None]), self.labels[index][None].numpy()


def is_in(images: Tensor, others: Tensor) -> Tensor:
    """True for each image, (count,), that stands among the others, pixel for pixel."""
    known = {other.numpy().tobytes() for other in others}
    return torch.tensor([image.numpy().tobytes() in known for image in images])
