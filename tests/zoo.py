"""Small networks of many families, to try every method, exporter and runtime on."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

Tensors = tuple[Tensor, ...]
Sample = tuple[Tensors, None]
Make = Callable[[], tuple[nn.Module, Tensors]]

CLASSES = 8


@dataclass(frozen=True)
class Specimen:
    """One network of the zoo, in eval mode, and the inputs of one call."""

    name: str
    network: nn.Module
    example: Tensors


ZOO: dict[str, Callable[[], Specimen]] = {}


def samples(specimen: Specimen, count: int, seed: int) -> list[Sample]:
    """`count` unlabeled samples of batch 1, shaped like the specimen's example."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (tuple(_drawn(like, specimen.network, generator) for like in specimen.example), None)
        for _ in range(count)
    ]


def _drawn(like: Tensor, network: nn.Module, generator: torch.Generator) -> Tensor:
    if not like.is_floating_point():
        is_mask = int(like.max()) <= 1
        return _mask(like, generator) if is_mask else _ids(like, network, generator)
    if like.ndim == 4:
        return _image(like, generator)
    return torch.randn(like.shape, generator=generator)


def _mask(like: Tensor, generator: torch.Generator) -> Tensor:
    """Ones, then at least one zero: a sentence that is shorter than its padding."""
    length = like.shape[1]
    used = torch.randint(length // 2, length, (like.shape[0], 1), generator=generator)
    return (torch.arange(length) < used).to(like.dtype)


def _ids(like: Tensor, network: nn.Module, generator: torch.Generator) -> Tensor:
    words = next(module for module in network.modules() if isinstance(module, nn.Embedding))
    return torch.randint(0, words.num_embeddings, like.shape, generator=generator)


def _image(like: Tensor, generator: torch.Generator) -> Tensor:
    """Blotches and noise: pure noise would look the same to every global average."""
    coarse = torch.randn((*like.shape[:2], 4, 4), generator=generator)
    blotches = functional.interpolate(coarse, size=like.shape[2:], mode="bilinear")
    return blotches + 0.3 * torch.randn(like.shape, generator=generator)


def _family(name: str) -> Callable[[Make], Callable[[], Specimen]]:
    """Enters a network into the zoo; its weights and statistics follow from its name alone."""

    def enter(make: Make) -> Callable[[], Specimen]:
        def specimen() -> Specimen:
            seed = zlib.crc32(name.encode())
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                network, like = make()
                _randomize_weights(network)
                inputs = _batch(Specimen(name, network, like), 64, seed)
                _settle_statistics(network, inputs)
                _settle_heads(network.eval(), inputs)
            example = samples(Specimen(name, network, like), 1, seed)[0][0]
            return Specimen(name, network, example)

        ZOO[name] = specimen
        return specimen

    return enter


def _randomize_weights(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
            if module.weight.shape[1] == 1:
                with torch.no_grad():
                    module.weight += module.weight.std()  # a depthwise filter mostly smooths
        elif isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0.5, 0.3)
        elif isinstance(module, nn.RNNBase):
            for weight in module.parameters():
                nn.init.normal_(weight, std=1.5 * module.hidden_size**-0.5)


def _batch(specimen: Specimen, size: int, seed: int) -> Tensors:
    drawn = [inputs for inputs, _ in samples(specimen, size, seed)]
    return tuple(torch.cat(tensors) for tensors in zip(*drawn, strict=True))


@torch.no_grad()
def _settle_statistics(network: nn.Module, inputs: Tensors) -> None:
    """Gives BatchNorm running statistics that fit the data, but neither zero, one nor exact."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    network.train()(*inputs)
    for norm in norms:
        norm.momentum = 0.1
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        mean.add_(0.2 * variance.sqrt() * torch.randn_like(mean))
        variance.mul_(torch.empty_like(variance).uniform_(0.8, 1.25))


@torch.no_grad()
def _settle_heads(network: nn.Module, inputs: Tensors) -> None:
    """Scales and centers the last linear layers: no class may win for every sample."""
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    heads = [layer for layer in layers if layer.out_features == CLASSES]
    hooks = [head.register_forward_hook(_settle_head) for head in heads]
    network(*inputs)
    for hook in hooks:
        hook.remove()


def _settle_head(head: nn.Module, _: Tensors, scores: Tensor) -> None:
    assert isinstance(head, nn.Linear)
    spread = scores.std(dim=0).mean()
    head.weight.div_(spread)
    head.bias.sub_(scores.mean(dim=0)).div_(spread).add_(0.2 * torch.randn_like(head.bias))


def _convolution(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]


class _Residual(nn.Module):
    """A basic ResNet block, with a projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(inputs, outputs, 3, stride), nn.ReLU(), *_convolution(outputs, outputs)
        )
        is_same = stride == 1 and inputs == outputs
        self.skip = (
            nn.Identity() if is_same else nn.Sequential(*_convolution(inputs, outputs, 1, stride))
        )
        self.activation = nn.ReLU()

    def forward(self, image: Tensor) -> Tensor:
        return self.activation(self.body(image) + self.skip(image))  # type: ignore[no-any-return]


@_family("residual-cnn")
def residual_cnn() -> tuple[nn.Module, Tensors]:
    network = nn.Sequential(
        *_convolution(3, 16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        _Residual(16, 16, 1),
        _Residual(16, 32, 2),
        _Residual(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    )
    return network, (torch.zeros(1, 3, 32, 32),)


class _InvertedResidual(nn.Module):
    """Expand, filter each channel, project; with a shortcut where the shape allows it."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, expansion: int, kernel: int = 3
    ) -> None:
        super().__init__()
        width = inputs * expansion
        expand = [*_convolution(inputs, width, 1), nn.ReLU6()] if expansion > 1 else []
        self.layers = nn.Sequential(
            *expand,
            *_convolution(width, width, kernel, stride, groups=width),
            nn.ReLU6(),
            *_convolution(width, outputs, 1),
        )
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, image: Tensor) -> Tensor:
        filtered: Tensor = self.layers(image)
        return image + filtered if self.has_shortcut else filtered


@_family("mobilenet-v2")
def mobilenet_v2() -> tuple[nn.Module, Tensors]:
    network = nn.Sequential(
        *_convolution(3, 16, 3, 2),
        nn.ReLU6(),
        _InvertedResidual(16, 8, 1, 1),
        _InvertedResidual(8, 16, 2, 6),
        _InvertedResidual(16, 16, 1, 6),
        _InvertedResidual(16, 24, 2, 6),
        _InvertedResidual(24, 24, 1, 6),
        *_convolution(24, 96, 1),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(96, CLASSES),
    )
    return network, (torch.zeros(1, 3, 64, 64),)


# Kernel, stride, expansion, channels, blocks: EfficientNet-Lite0 at a third of its width.
LITE0_STAGES = (
    (3, 1, 1, 8, 1),
    (3, 2, 6, 8, 2),
    (5, 2, 6, 16, 2),
    (3, 2, 6, 24, 3),
    (5, 1, 6, 40, 3),
    (5, 2, 6, 64, 4),
    (3, 1, 6, 104, 1),
)


@_family("efficientnet-lite0")
def efficientnet_lite0() -> tuple[nn.Module, Tensors]:
    channels = 16
    blocks: list[nn.Module] = []
    for kernel, stride, expansion, outputs, repeats in LITE0_STAGES:
        for repeat in range(repeats):
            blocks.append(
                _InvertedResidual(
                    channels, outputs, stride if repeat == 0 else 1, expansion, kernel
                )
            )
            channels = outputs
    network = nn.Sequential(
        *_convolution(3, 16, 3, 2),
        nn.ReLU6(),
        *blocks,
        *_convolution(channels, 256, 1),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(256, CLASSES),
    )
    return network, (torch.zeros(1, 3, 64, 64),)


class _SsdLite(nn.Module):
    """A MobileNet with a separable head for boxes and one for scores at two scales."""

    ANCHORS = 2

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(
            *_convolution(3, 16, 3, 2),
            nn.ReLU6(),
            _InvertedResidual(16, 16, 2, 4),
            _InvertedResidual(16, 24, 2, 4),
            _InvertedResidual(24, 24, 1, 4),
        )
        self.coarse = nn.Sequential(_InvertedResidual(24, 32, 2, 4), *_convolution(32, 64, 1))
        self.boxes = nn.ModuleList(self._head(width, 4) for width in (24, 64))
        self.scores = nn.ModuleList(self._head(width, CLASSES) for width in (24, 64))

    def _head(self, width: int, outputs: int) -> nn.Module:
        return nn.Sequential(
            *_convolution(width, width, groups=width),
            nn.ReLU6(),
            nn.Conv2d(width, self.ANCHORS * outputs, 1),
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(image)
        maps = (fine, self.coarse(fine))
        boxes = [_rows(head(map_), 4) for head, map_ in zip(self.boxes, maps, strict=True)]
        scores = [_rows(head(map_), CLASSES) for head, map_ in zip(self.scores, maps, strict=True)]
        return torch.cat(boxes, dim=1), torch.cat(scores, dim=1)


def _rows(map_: Tensor, width: int) -> Tensor:
    """(batch, anchors x width, height, width) as (batch, boxes, width)."""
    return map_.permute(0, 2, 3, 1).reshape(map_.shape[0], -1, width)


@_family("ssdlite")
def ssdlite() -> tuple[nn.Module, Tensors]:
    return _SsdLite(), (torch.zeros(1, 3, 64, 64),)


class _UNet(nn.Module):
    """Three steps down and three up: a transposed convolution, a bilinear and a nearest resize."""

    def __init__(self) -> None:
        super().__init__()
        widths = (8, 16, 24, 32)
        self.stem = self._pair(3, widths[0])
        self.down = nn.ModuleList(self._pair(*pair) for pair in pairwise(widths))
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(
            (
                nn.ConvTranspose2d(32, 32, 2, stride=2),
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
                nn.Upsample(scale_factor=2, mode="nearest"),
            )
        )
        self.join = nn.ModuleList(
            (self._pair(32 + 24, 24), self._pair(24 + 16, 16), self._pair(16 + 8, 8))
        )
        self.head = nn.Conv2d(8, CLASSES, 1)

    @staticmethod
    def _pair(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(
            *_convolution(inputs, outputs), nn.ReLU(), *_convolution(outputs, outputs), nn.ReLU()
        )

    def forward(self, image: Tensor) -> Tensor:
        maps: list[Tensor] = [self.stem(image)]
        for down in self.down:
            maps.append(down(self.pool(maps[-1])))
        current = maps.pop()
        for up, join in zip(self.up, self.join, strict=True):
            current = join(torch.cat((up(current), maps.pop()), dim=1))
        return self.head(current)  # type: ignore[no-any-return]


@_family("u-net")
def u_net() -> tuple[nn.Module, Tensors]:
    return _UNet(), (torch.zeros(1, 3, 32, 32),)


class _VitBlock(nn.Module):
    """Attention and a feed-forward network, each behind its LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.before_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        normal = self.before_attention(tokens)
        tokens = tokens + self.attention(normal, normal, normal, need_weights=False)[0]
        return tokens + self.mlp(self.before_mlp(tokens))  # type: ignore[no-any-return]


class _Vit(nn.Module):
    """Patches of 8 x 8 as tokens, behind a class token."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.5 * torch.randn(1, 17, width))
        self.blocks = nn.Sequential(_VitBlock(width, 4), _VitBlock(width, 4))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.patches(image).flatten(2).transpose(1, 2)
        class_token = self.class_token.expand(patches.shape[0], -1, -1)
        tokens = torch.cat((class_token, patches), dim=1) + self.positions
        return self.head(self.norm(self.blocks(tokens))[:, 0])  # type: ignore[no-any-return]


@_family("vit")
def vit() -> tuple[nn.Module, Tensors]:
    return _Vit(), (torch.zeros(1, 3, 32, 32),)


class _BertLayer(nn.Module):
    """Attention written out and a feed-forward network, each before its LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.after_attention = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.after_mlp = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, penalty: Tensor) -> Tensor:
        query, key, value = (
            layer(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + penalty
        mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
        tokens = self.after_attention(tokens + self.output(mixed))
        return self.after_mlp(tokens + self.mlp(tokens))  # type: ignore[no-any-return]


class _Bert(nn.Module):
    """A sentence classifier over word ids and a mask of the words that count."""

    def __init__(self, words: int = 96, length: int = 16, width: int = 64) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.positions = nn.Embedding(length, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList((_BertLayer(width, 4), _BertLayer(width, 4)))
        self.pooler = nn.Linear(width, width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        tokens = self.norm(self.words(ids) + self.positions(places))
        penalty = (1.0 - mask[:, None, None, :].to(tokens.dtype)) * -10000.0
        for layer in self.layers:
            tokens = layer(tokens, penalty)
        return self.head(torch.tanh(self.pooler(tokens[:, 0])))  # type: ignore[no-any-return]


@_family("bert")
def bert() -> tuple[nn.Module, Tensors]:
    ids = torch.full((1, 16), 2, dtype=torch.int64)
    return _Bert(), (ids, torch.ones((1, 16), dtype=torch.int64))


class _Recurrent(nn.Module):
    """A recurrent network over a series, and a linear layer on its last state."""

    def __init__(self, layer: nn.GRU | nn.LSTM) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(layer.hidden_size, CLASSES)

    def forward(self, series: Tensor) -> Tensor:
        states, _ = self.layer(series)
        return self.head(states[:, -1])  # type: ignore[no-any-return]


@_family("gru")
def gru() -> tuple[nn.Module, Tensors]:
    return _Recurrent(nn.GRU(16, 32, batch_first=True)), (torch.zeros(1, 12, 16),)


@_family("lstm")
def lstm() -> tuple[nn.Module, Tensors]:
    return _Recurrent(nn.LSTM(16, 32, batch_first=True)), (torch.zeros(1, 12, 16),)


class _ChannelNorm(nn.LayerNorm):
    """A LayerNorm over the channels of (batch, channels, height, width)."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _ConvNextBlock(nn.Module):
    """A 7 x 7 depthwise convolution, then a feed-forward network on each pixel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.activation = nn.GELU()
        self.project = nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.empty(width).uniform_(0.3, 0.8))

    def forward(self, image: Tensor) -> Tensor:
        pixels = self.norm(self.depthwise(image).permute(0, 2, 3, 1))
        pixels = self.scale * self.project(self.activation(self.expand(pixels)))
        return image + pixels.permute(0, 3, 1, 2)  # type: ignore[no-any-return]


@_family("convnext")
def convnext() -> tuple[nn.Module, Tensors]:
    network = nn.Sequential(
        nn.Conv2d(3, 16, 4, 4),
        _ChannelNorm(16),
        _ConvNextBlock(16),
        _ChannelNorm(16),
        nn.Conv2d(16, 32, 2, 2),
        _ConvNextBlock(32),
        _ConvNextBlock(32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(32),
        nn.Linear(32, CLASSES),
    )
    return network, (torch.zeros(1, 3, 32, 32),)


def _trunk() -> nn.Sequential:
    """Images of 32 x 32 as 32 features."""
    return nn.Sequential(
        *_convolution(3, 16, 3, 2),
        nn.ReLU(),
        *_convolution(16, 32, 3, 2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


class _TwoInputs(nn.Module):
    """A steering angle, say, from what the camera sees and what the wheels feel."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = _trunk()
        self.sensors = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, CLASSES))

    def forward(self, image: Tensor, sensors: Tensor) -> Tensor:
        joined = torch.cat((self.trunk(image), self.sensors(sensors)), dim=1)
        return self.head(joined)  # type: ignore[no-any-return]


@_family("two-inputs")
def two_inputs() -> tuple[nn.Module, Tensors]:
    return _TwoInputs(), (torch.zeros(1, 3, 32, 32), torch.zeros(1, 8))


class _DictOutput(nn.Module):
    """Two heads, returned by name."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = _trunk()
        self.classes = nn.Linear(32, CLASSES)
        self.pose = nn.Linear(32, 8)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.trunk(image)
        return {"classes": self.classes(features), "pose": self.pose(features)}


@_family("dict-output")
def dict_output() -> tuple[nn.Module, Tensors]:
    return _DictOutput(), (torch.zeros(1, 3, 32, 32),)


class _TupleOutput(nn.Module):
    """Two heads, returned in order."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = _trunk()
        self.classes = nn.Linear(32, CLASSES)
        self.pose = nn.Linear(32, 8)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(image)
        return self.classes(features), self.pose(features)


@_family("tuple-output")
def tuple_output() -> tuple[nn.Module, Tensors]:
    return _TupleOutput(), (torch.zeros(1, 3, 32, 32),)
