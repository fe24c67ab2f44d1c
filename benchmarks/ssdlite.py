"""SSDLite-MobileNetV2 in plain PyTorch layers, from a frozen TensorFlow graph.

Sandler et al. 2018, arXiv:1801.04381, as TensorFlow's Object Detection API builds it.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

# What it was trained at: the side length of the images, in pixels.
SIZE = 300
CLASSES = 2  # background, person
# stride, expansion, output channels, repeats
STAGES = (
    (1, 1, 16, 1),
    (2, 6, 24, 2),
    (2, 6, 32, 3),
    (2, 6, 64, 4),
    (1, 6, 96, 3),
    (2, 6, 160, 3),
    (1, 6, 320, 1),
)
# Behind the backbone: middle and output channels of the layers that halve the map.
EXTRAS = ((256, 512), (128, 256), (128, 256), (64, 128))
# Where boxes are looked for: stride and channels of each map, and boxes at each place.
MAPS = (
    (16, 576, 3),
    (32, 1280, 6),
    (64, 512, 6),
    (128, 256, 6),
    (256, 256, 6),
    (512, 128, 6),
)


class SsdLite(nn.Module):
    """Images (N, 3, size, size) from -1 to 1 become box encodings (N, count, 4) and class logits.

    The logits, (N, count, 2), are of background and person; both are relative to the anchors of
    `boxes.anchors`, in their order: 1917 at 300 pixels.
    """

    def __init__(self, size: int = SIZE) -> None:
        super().__init__()
        # The first map is the middle of a block: its widened channels.
        self.fine, self.coarse = _backbone(size)
        self.extras = nn.ModuleList(
            nn.Sequential(
                *_convolution(channels, middle),
                *_convolution(middle, middle, 3, 2, groups=middle, size=side),
                *_convolution(middle, out_channels),
            )
            for side, (_, channels, _), (middle, out_channels) in zip(
                sides(size)[1:], MAPS[1:], EXTRAS, strict=False
            )
        )
        self.boxes = nn.ModuleList(_head(channels, 4 * count) for _, channels, count in MAPS)
        self.scores = nn.ModuleList(_head(channels, CLASSES * count) for _, channels, count in MAPS)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        maps = [self.fine(image)]
        for layers in (self.coarse, *self.extras):
            maps.append(layers(maps[-1]))
        boxes = [_rows(head(map_), 4) for head, map_ in zip(self.boxes, maps, strict=True)]
        scores = [_rows(head(map_), CLASSES) for head, map_ in zip(self.scores, maps, strict=True)]
        return torch.cat(boxes, dim=1), torch.cat(scores, dim=1)


def sides(size: int) -> list[int]:
    """The side length of every map, for images of `size` pixels."""
    return [-(-size // stride) for stride, _, _ in MAPS]


class InvertedResidual(nn.Module):
    """Expand the channels, filter each on its own, project back; add the input where it fits."""

    def __init__(
        self, channels: int, out_channels: int, stride: int, expansion: int, size: int
    ) -> None:
        super().__init__()
        wide = channels * expansion
        self.layers = nn.Sequential(
            *(_convolution(channels, wide) if expansion > 1 else ()),
            *_narrowing(wide, out_channels, stride, size),
        )
        self.residual = stride == 1 and channels == out_channels

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layers(inputs)
        return inputs + outputs if self.residual else outputs


def pretrained(constants: Mapping[str, NDArray[np.float32]], size: int = SIZE) -> SsdLite:
    """The network in eval mode, with the constants of the published graph."""
    network = SsdLite(size)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
    names = _published_names()
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            name = next(names)
        _fill(layer, name, constants)
    return network.eval()


def _backbone(image: int) -> tuple[nn.Sequential, nn.Sequential]:
    """MobileNetV2 without its head, cut in the middle of the block that makes the second map."""
    fine: list[nn.Module] = _convolution(3, 32, 3, 2, size=image)
    coarse: list[nn.Module] = []
    channels, size = 32, -(-image // 2)
    for stride, expansion, out_channels, repeats in STAGES:
        for repeat in range(repeats):
            first = stride if repeat == 0 else 1
            if first == 2 and size == sides(image)[0]:
                wide = channels * expansion
                fine += _convolution(channels, wide)
                coarse = _narrowing(wide, out_channels, first, size)
            else:
                block = InvertedResidual(channels, out_channels, first, expansion, size)
                (coarse or fine).append(block)
            channels, size = out_channels, -(-size // first)
    coarse += _convolution(channels, MAPS[1][1])
    return nn.Sequential(*fine), nn.Sequential(*coarse)


def _narrowing(wide: int, out_channels: int, stride: int, size: int) -> list[nn.Module]:
    return [
        *_convolution(wide, wide, 3, stride, groups=wide, size=size),
        *_convolution(wide, out_channels)[:-1],  # the projection is linear: no activation
    ]


def _head(channels: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        *_convolution(channels, channels, 3, groups=channels), nn.Conv2d(channels, outputs, 1)
    )


def _convolution(
    channels: int,
    out_channels: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    size: int = 1,
) -> list[nn.Module]:
    """`size` is the side length of the input, where the stride is 2."""
    # TensorFlow's SAME pads a stride of 2 on an even size at the far sides only.
    is_uneven = stride == 2 and size % 2 == 0
    padding = 0 if is_uneven else kernel // 2
    return [
        *([nn.ZeroPad2d((0, 1, 0, 1))] if is_uneven else []),
        nn.Conv2d(channels, out_channels, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels, eps=1e-3),
        nn.ReLU6(),
    ]


def _rows(map_: Tensor, width: int) -> Tensor:
    """(N, boxes x width, height, width) as (N, boxes, width), place by place."""
    return map_.permute(0, 2, 3, 1).reshape(map_.shape[0], -1, width)


def _published_names() -> Iterator[str]:
    """How the graph calls the convolutions, in the order of this network's."""
    backbone = "FeatureExtractor/MobilenetV2"
    yield f"{backbone}/Conv"
    for block in range(sum(repeats for *_, repeats in STAGES)):
        name = f"{backbone}/expanded_conv{f'_{block}' if block else ''}"
        yield from (f"{name}/{part}" for part in ("expand", "depthwise", "project")[block == 0 :])
    yield f"{backbone}/Conv_1"
    for number, (middle, out_channels) in enumerate(EXTRAS, start=2):
        yield f"{backbone}/layer_19_1_Conv2d_{number}_1x1_{middle}"
        wide = f"{backbone}/layer_19_2_Conv2d_{number}_3x3_s2_{out_channels}"
        yield from (f"{wide}_depthwise", wide)
    for head in ("BoxEncodingPredictor", "ClassPredictor"):
        for number in range(len(MAPS)):
            name = f"BoxPredictor_{number}/{head}"
            yield from (f"{name}_depthwise", name)


@torch.no_grad()
def _fill(
    layer: nn.Conv2d | nn.BatchNorm2d, name: str, constants: Mapping[str, NDArray[np.float32]]
) -> None:
    """Copies a convolution's weights, or those of the BatchNorm behind it."""
    if isinstance(layer, nn.BatchNorm2d):
        parts = {"weight": "gamma", "bias": "beta"}
        parts |= {"running_mean": "moving_mean", "running_var": "moving_variance"}
        found = {ours: constants[f"{name}/BatchNorm/{theirs}"] for ours, theirs in parts.items()}
    else:
        # TensorFlow keeps (height, width, inputs, outputs), or (height, width, channels, 1).
        is_depthwise = layer.groups > 1
        weight = constants[f"{name}/{'depthwise_weights' if is_depthwise else 'weights'}"]
        found = {"weight": weight.transpose((2, 3, 0, 1) if is_depthwise else (3, 2, 0, 1))}
        if layer.bias is not None:
            found["bias"] = constants[f"{name}/biases"]
    for ours, array in found.items():
        getattr(layer, ours).copy_(torch.tensor(array))
