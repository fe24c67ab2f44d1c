"""Boxes of an SSD detector: from its outputs, and how many of them another one finds again.

A box is (top, left, bottom, right), as shares of the image's height and width.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from ssdlite import sides

# Liu et al. 2016, arXiv:1512.02325, with the constants of the published graph.
SCALES = (0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0)
RATIOS = (1.0, 2.0, 0.5, 3.0, 0.3333)
FINEST = ((0.1, 1.0), (0.2, 2.0), (0.2, 0.5))
VARIANCES = np.array([10, 10, 5, 5], np.float32)
OVERLAP_OF_ONE_OBJECT = 0.6

Array = NDArray[np.float32]


def detected(encodings: Array, logits: Array, anchors: Array, threshold: float) -> Array:
    """The boxes of one image that are a person with a probability above the threshold.

    Args:
        encodings: (count, 4), and `logits`, (count, 2), as the network returns them, relative to
            `anchors`, (count, 4).

    Returns:
        (count, 4), the surest first; of boxes that overlap much only the surest.
    """
    probabilities = 1 / (1 + np.exp(-logits[:, 1].astype(np.float64)))
    sure = np.flatnonzero(probabilities > threshold)
    order = sure[np.argsort(-probabilities[sure], kind="stable")]
    boxes = decoded(encodings, anchors)[order]
    return boxes[_distinct(boxes)]


def decoded(encodings: Array, anchors: Array) -> Array:
    """Every anchor's box, (count, 4), cut at the borders of the image."""
    shifts, growths = np.split(encodings / VARIANCES, 2, axis=1)
    centers = anchors[:, :2] + shifts * anchors[:, 2:]
    halves = anchors[:, 2:] * np.exp(growths) / 2
    return np.concatenate([centers - halves, centers + halves], axis=1).clip(0, 1)


def recall(found: list[Array], wanted: list[Array], overlap: float) -> float:
    """The share of wanted boxes, over all images, that a found box of its own overlaps enough."""
    hits = sum(_matches(*pair, overlap) for pair in zip(found, wanted, strict=True))
    return hits / sum(map(len, wanted))


def overlaps(boxes: Array, others: Array) -> Array:
    """Intersection over union of each box with each other box, (count, others)."""
    near = np.maximum(boxes[:, None, :2], others[None, :, :2])
    far = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (far - near).clip(0).prod(axis=2)
    areas = [np.prod(each[:, 2:] - each[:, :2], axis=1) for each in (boxes, others)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    shares: Array = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return shares


@lru_cache
def anchors(size: int) -> Array:
    """Center and size of every anchor, (count, 4): map by map, row by row, shape by shape.

    They are shares of an image of `size` pixels, whose maps have `sides(size)`.
    """
    found = []
    for level, side in enumerate(sides(size)):
        rows, columns = np.mgrid[0:side, 0:side]
        centers = (np.stack([rows, columns], axis=-1).reshape(-1, 2) + 0.5) / side
        shapes = np.array([(scale / ratio**0.5, scale * ratio**0.5) for scale, ratio in _at(level)])
        places = np.repeat(centers, len(shapes), axis=0)
        found.append(np.hstack([places, np.tile(shapes, (len(centers), 1))]))
    return np.concatenate(found).astype(np.float32)


def _at(level: int) -> list[tuple[float, float]]:
    """Scale, and width over height, of the anchors of a map."""
    if level == 0:
        return list(FINEST)
    scale, following = SCALES[level], SCALES[level + 1]
    return [*((scale, ratio) for ratio in RATIOS), ((scale * following) ** 0.5, 1.0)]


def _distinct(boxes: Array) -> list[int]:
    """Non-maximum suppression: the numbers of the boxes that overlap no surer one too much."""
    kept: list[int] = []
    similar = overlaps(boxes, boxes) > OVERLAP_OF_ONE_OBJECT
    for number in range(len(boxes)):
        if not similar[number, kept].any():
            kept.append(number)
    return kept


def _matches(found: Array, wanted: Array, overlap: float) -> int:
    """How many wanted boxes get a found box of their own, the surest found box choosing first."""
    shares = overlaps(found, wanted)
    hits = 0
    for row in shares:
        if row.size and row.max() >= overlap:
            shares[:, row.argmax()] = 0
            hits += 1
    return hits
