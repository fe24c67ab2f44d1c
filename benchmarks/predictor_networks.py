"""Whole networks of many kinds with random weights: what latency predictions are tested on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import pneumonia
import torch
import vehicles
from efficientnet_lite0 import efficientnet_lite0
from minilm import SentenceEncoder
from ssdlite import SIZE, SsdLite
from torch import Tensor, nn
from torch.nn import functional

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Subject:
    """A network in eval mode, and one input of it."""

    network: nn.Module
    example: Tensors


class ResNet18(nn.Module):
    """He et al. 2016, with its published widths."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        blocks, channels = [], 64
        for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [Basic(channels, width, stride), Basic(width, width, 1)]
            channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(512, 1000)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return out


class Basic(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(inputs, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width)),
        )
        is_same = stride == 1 and inputs == width
        self.shortcut = nn.Identity() if is_same else nn.Conv2d(inputs, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.layers(x) + self.shortcut(x))


class MobileNetV3(nn.Module):
    """The small one of Howard et al. 2019: hard swish, and channels that are weighed."""

    # kernel, wide, out, is weighed, is hard swish, stride
    STAGES = (
        *((3, 16, 16, True, False, 2), (3, 72, 24, False, False, 2), (3, 88, 24, False, False, 1)),
        *((5, 96, 40, True, True, 2), (5, 240, 40, True, True, 1), (5, 240, 40, True, True, 1)),
        *((5, 120, 48, True, True, 1), (5, 144, 48, True, True, 1), (5, 288, 96, True, True, 2)),
        *((5, 576, 96, True, True, 1), (5, 576, 96, True, True, 1)),
    )

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.Hardswish())
        blocks, channels = [], 16
        for kernel, wide, out, is_weighed, is_swish, stride in self.STAGES:
            blocks.append(Weighed(channels, wide, out, kernel, stride, is_weighed, is_swish))
            channels = out
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(nn.Conv2d(96, 576, 1), nn.Hardswish())
        self.head = nn.Sequential(nn.Linear(576, 1024), nn.Hardswish(), nn.Linear(1024, 1000))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.last(self.blocks(self.stem(x))).mean((2, 3)))
        return out


class Weighed(nn.Module):
    """An inverted residual whose channels are weighed by their means."""

    def __init__(
        self,
        inputs: int,
        wide: int,
        out: int,
        kernel: int,
        stride: int,
        is_weighed: bool,
        is_swish: bool,
    ) -> None:
        super().__init__()
        act = nn.Hardswish() if is_swish else nn.ReLU()
        self.widen = nn.Sequential(nn.Conv2d(inputs, wide, 1), act)
        depthwise = nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide)
        self.filter = nn.Sequential(depthwise, act)
        few = max(wide // 4, 8)
        gate = (nn.Conv2d(wide, few, 1), nn.ReLU(), nn.Conv2d(few, wide, 1), nn.Hardsigmoid())
        self.gate = nn.Sequential(*gate) if is_weighed else None
        self.narrow = nn.Conv2d(wide, out, 1)
        self.is_sum = stride == 1 and inputs == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.filter(self.widen(x))
        if self.gate is not None:
            y = y * self.gate(y.mean((2, 3), keepdim=True))
        out: Tensor = self.narrow(y)
        return x + out if self.is_sum else out


class UNet(nn.Module):
    """Down and up again, with what was seen on the way down put beside: segmentation."""

    WIDTHS = (16, 32, 64, 128)

    def __init__(self) -> None:
        super().__init__()
        pairs = zip((3, *self.WIDTHS[:-1]), self.WIDTHS, strict=True)
        self.down = nn.ModuleList(self._double(a, b) for a, b in pairs)
        ups = list(zip(self.WIDTHS[:0:-1], self.WIDTHS[-2::-1], strict=True))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in ups)
        self.up = nn.ModuleList(self._double(2 * b, b) for _, b in ups)
        self.head = nn.Conv2d(self.WIDTHS[0], 2, 1)

    @staticmethod
    def _double(inputs: int, width: int) -> nn.Sequential:
        return nn.Sequential(
            *(nn.Conv2d(inputs, width, 3, 1, 1), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, 1, 1), nn.ReLU()),
        )

    def forward(self, x: Tensor) -> Tensor:
        seen = []
        for number, layers in enumerate(self.down):
            x = layers(functional.max_pool2d(x, 2) if number else x)
            seen.append(x)
        for grow, layers, beside in zip(self.grow, self.up, seen[-2::-1], strict=True):
            x = layers(torch.cat([grow(x), beside], 1))
        out: Tensor = self.head(x)
        return out


class VisionTransformer(nn.Module):
    """Dosovitskiy et al. 2021, tiny: patches as words."""

    def __init__(self, width: int = 192, heads: int = 3, depth: int = 6, patches: int = 49) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.places = nn.Parameter(torch.randn(1, patches, width))
        layer = nn.TransformerEncoderLayer
        self.layers = nn.ModuleList(
            layer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(self.norm(x).mean(1))
        return out


def _mlp() -> nn.Sequential:
    widths = (784, 1024, 1024, 512, 10)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _keyword_spotter() -> nn.Sequential:
    """Depthwise-separable convolutions over a spectrogram (Zhang et al. 2018)."""
    layers: list[nn.Module] = [nn.Conv2d(1, 64, (10, 4), (2, 2), (5, 1)), nn.ReLU()]
    for _ in range(4):
        layers += [
            nn.Conv2d(64, 64, 3, 1, 1, groups=64),
            nn.ReLU(),
            nn.Conv2d(64, 64, 1),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 12))


def _image(side: int, channels: int = 3) -> Tensors:
    return (torch.randn(1, channels, side, side),)


def _sentence(length: int) -> Tensors:
    return torch.randint(0, 30000, (1, length)), torch.ones(1, length, dtype=torch.int64)


SUBJECTS: Mapping[str, Callable[[], Subject]] = {
    "efficientnet-lite0 @160": lambda: Subject(efficientnet_lite0(1000), _image(160)),
    "ssdlite-mobilenet-v2 @300": lambda: Subject(SsdLite(), _image(SIZE)),
    "minilm, 32 words": lambda: Subject(SentenceEncoder(32), _sentence(32)),
    "vehicles @32": lambda: Subject(vehicles.network(), _image(32)),
    "pneumonia @28": lambda: Subject(pneumonia.network(), _image(28, 1)),
    "resnet-18 @128": lambda: Subject(ResNet18(), _image(128)),
    "mobilenet-v3-small @160": lambda: Subject(MobileNetV3(), _image(160)),
    "u-net @96": lambda: Subject(UNet(), _image(96)),
    "vit-tiny @112": lambda: Subject(VisionTransformer(), _image(112)),
    "mlp": lambda: Subject(_mlp(), (torch.randn(1, 784),)),
    "keyword-spotter": lambda: Subject(_keyword_spotter(), (torch.randn(1, 1, 98, 40),)),
}


def subject(name: str) -> Subject:
    """The same network every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = SUBJECTS[name]()
    return Subject(made.network.eval(), made.example)
