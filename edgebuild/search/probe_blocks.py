"""Draws the shapes of what a probe times: small pieces of networks, each with an input."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgebuild.search.probe_modules import (
    Activated,
    Attention,
    Classified,
    Detecting,
    Gated,
    Inverted,
    Joined,
    Layers,
    Masked,
    Pooled,
    Residual,
    Shuffled,
)

# Sides of images inside networks, at inputs of 96 to 320 pixels.
SIDES = (7, 8, 10, 12, 14, 16, 19, 20, 24, 28, 32, 38, 40, 48, 56, 64, 75, 80, 96, 112)
# What a block may compute and hold, so that a probe ends in minutes on a slow board.
MOST_MACS = 60e6
MOST_NUMBERS = 1.2e6
# The channels of an input that is to cost nothing.
SLIM = 8
ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU,
    nn.ReLU6,
    nn.Hardswish,
    nn.SiLU,
    nn.GELU,
    nn.Sigmoid,
    nn.Tanh,
    nn.LeakyReLU,
    nn.Hardsigmoid,
)
# Those of mobile networks, which are such chains.
CHAINED = (nn.ReLU, nn.ReLU6, nn.Hardswish)


@dataclass(frozen=True)
class Block:
    """A piece of a network with an input of its own."""

    network: nn.Module
    example: Tensor


def image_blocks(draw: random.Random, count: int) -> list[Block]:
    """Blocks of convolutions, each kind in turn, in drawn shapes."""
    makers = (
        *(_inverted, _residual, _gated, _pooled, _joined, _classified, _gray, _stem),
        *(_detecting, _shuffled, _padded, _activated),
    )
    return [_fitting(makers[number % len(makers)], draw) for number in range(count)]


def token_blocks(draw: random.Random, count: int) -> list[Block]:
    """Blocks of linear layers, each kind in turn, in drawn shapes."""
    makers = (_attention, _tokens, _encoder, _row, _masked)
    return [_fitting(makers[number % len(makers)], draw) for number in range(count)]


def row_blocks(draw: random.Random, count: int) -> list[Block]:
    """Layers of one row: their time is that of reading their weights."""
    return [_fitting(_row, draw) for _ in range(count)]


def tiny_blocks(draw: random.Random, count: int) -> list[Block]:
    """Blocks with next to nothing to compute: they take what the calls of their kernels take."""
    blocks = []
    for number in range(count):
        act = ACTIVATIONS[number % len(ACTIVATIONS)]()
        if number % 3 == 2:
            blocks.append(Block(Attention(16, 2, 2), torch.randn(1, 4, 16)))
        else:
            kernel = draw.choice((3, 5))
            blocks.append(Block(Inverted(8, 2, kernel, 1, act), torch.randn(1, 8, 4, 4)))
    return blocks


def chained_blocks(
    draw: random.Random, count: int, width: int, times: int, side: int
) -> list[Block]:
    """Blocks one after the other: many kernels, but one tensor in and one out, as networks have.

    Beside blocks with an input each, it tells what noting a kernel takes from handing a tensor.
    """
    blocks = [
        Inverted(width, times, draw.choice((3, 5)), 1, draw.choice(CHAINED)()) for _ in range(count)
    ]
    return [Block(nn.Sequential(*blocks), _image(width, side))]


def _fitting(make: Callable[[random.Random], Block | None], draw: random.Random) -> Block:
    """Draws until a block is small enough."""
    while (block := make(draw)) is None:
        pass
    return block


def _width(draw: random.Random, low: int, high: int) -> int:
    """Log-uniform; mostly a multiple of eight, as networks have them."""
    width = round(math.exp(draw.uniform(math.log(low), math.log(high))))
    return width if draw.random() < 0.05 else max(round(width / 8) * 8, 8)


def _is_fit(macs: float, numbers: float) -> bool:
    return macs <= MOST_MACS and numbers <= MOST_NUMBERS


def _image(width: int, side: int) -> Tensor:
    return torch.randn(1, width, side, side)


def _act(draw: random.Random) -> nn.Module:
    return draw.choice(ACTIVATIONS)()


def _inverted(draw: random.Random) -> Block | None:
    width, side, times = _width(draw, 8, 160), draw.choice(SIDES), draw.choice((1, 2, 3, 4, 6))
    kernel, stride = draw.choice((3, 3, 5)), draw.choice((1, 1, 2))
    if not _is_fit(2 * width * width * times * side**2, width * times * side**2):
        return None
    return Block(Inverted(width, times, kernel, stride, _act(draw)), _image(width, side))


def _residual(draw: random.Random) -> Block | None:
    inputs, width, side = _width(draw, 8, 256), _width(draw, 8, 512), draw.choice(SIDES)
    kernel, stride = draw.choice((3, 3, 3, 5)), draw.choice((1, 2))
    macs = (inputs + 2 * width) * width * (side / stride) ** 2 * kernel**2
    if not _is_fit(macs, (inputs + width) * side**2):
        return None
    act = draw.choice((nn.ReLU, nn.ReLU, nn.SiLU, nn.LeakyReLU))()
    return Block(Residual(inputs, width, kernel, stride, act), _image(inputs, side))


def _gated(draw: random.Random) -> Block | None:
    width, side = _width(draw, 16, 512), draw.choice(SIDES)
    if not _is_fit(width * width * side**2, width * side**2):
        return None
    gate = draw.choice((nn.Sigmoid, nn.Hardsigmoid))()
    return Block(Gated(width, draw.choice((3, 5)), gate), _image(width, side))


def _pooled(draw: random.Random) -> Block | None:
    inputs, width, side = _width(draw, 8, 96), _width(draw, 8, 128), draw.choice(SIDES[4:])
    if not _is_fit(9 * inputs * width * side**2, width * side**2):
        return None
    pools = (nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.AvgPool2d(3, 2))
    return Block(Pooled(inputs, width, draw.choice(pools)), _image(inputs, side))


def _joined(draw: random.Random) -> Block | None:
    width, side = _width(draw, 8, 128), draw.choice([side for side in SIDES if side % 2 == 0])
    if not _is_fit(22 * width**2 * side**2, 4 * width * side**2):
        return None
    grow: nn.Module = nn.Upsample(scale_factor=2, mode=draw.choice(("nearest", "bilinear")))
    if draw.random() < 0.4:
        grow = nn.ConvTranspose2d(width, width, 2, 2)
    return Block(Joined(width, grow), _image(width, side))


def _classified(draw: random.Random) -> Block | None:
    inputs, width, side = _width(draw, 16, 320), _width(draw, 64, 1280), draw.choice((4, 7, 8, 10))
    classes = draw.choice((2, 10, 100, 1000))
    if not _is_fit(inputs * width * side**2, width * side**2):
        return None
    return Block(Classified(inputs, width, classes), _image(inputs, side))


def _stem(draw: random.Random) -> Block | None:
    return _first_layers(draw, inputs=3)


def _gray(draw: random.Random) -> Block | None:
    return _first_layers(draw, inputs=1)


def _first_layers(draw: random.Random, inputs: int) -> Block | None:
    """Of an image: few channels, many pixels."""
    width = draw.choice((8, 16, 24, 32, 64))
    side, kernel = draw.choice((32, 64, 96, 128, 160, 224)), draw.choice((3, 3, 7))
    stride = draw.choice((1, 2, 2))
    if not _is_fit(inputs * width * (side / stride * kernel) ** 2, width * (side / stride) ** 2):
        return None
    first = nn.Conv2d(inputs, width, kernel, stride, kernel // 2)
    then = nn.Conv2d(width, width, 3, 1, 1, groups=draw.choice((1, width)))
    pool = nn.MaxPool2d(3, 2, 1) if draw.random() < 0.5 else nn.Identity()
    layers = nn.Sequential(first, _act(draw), pool, then, nn.ReLU())
    return Block(layers, _image(inputs, side))


def _attention(draw: random.Random) -> Block | None:
    heads, size = draw.choice((2, 3, 4, 6, 8, 12)), draw.choice((16, 32, 64))
    tokens, times = draw.choice((16, 32, 50, 64, 128, 197)), draw.choice((2, 4))
    width = heads * size
    macs = (4 + 2 * times) * width**2 * tokens + 2 * tokens**2 * width
    if macs > 3 * MOST_MACS or heads * tokens**2 > MOST_NUMBERS:
        return None
    return Block(Attention(width, heads, times), torch.randn(1, tokens, width))


def _tokens(draw: random.Random) -> Block | None:
    widths = [_width(draw, 16, 1024) for _ in range(3)]
    tokens = draw.choice((8, 16, 32, 64, 128, 256))
    if not _is_fit(tokens * widths[1] * (widths[0] + widths[2]), tokens * max(widths)):
        return None
    return Block(Layers(widths, _act(draw)), torch.randn(1, tokens, widths[0]))


def _encoder(draw: random.Random) -> Block | None:
    heads, size = draw.choice((2, 3, 4, 6)), draw.choice((32, 64))
    tokens, times, width = draw.choice((16, 32, 50, 64, 128)), draw.choice((2, 4)), heads * size
    if (4 + 2 * times) * width**2 * tokens > 2 * MOST_MACS:
        return None
    layer = nn.TransformerEncoderLayer(
        *(width, heads, times * width, 0.0, "gelu"),
        batch_first=True,
        norm_first=draw.random() < 0.5,
    )
    return Block(layer, torch.randn(1, tokens, width))


def _masked(draw: random.Random) -> Block | None:
    heads, size, tokens = (
        draw.choice((2, 4, 6)),
        draw.choice((16, 32, 64)),
        draw.choice((16, 32, 64)),
    )
    if 8 * (heads * size) ** 2 * tokens > 2 * MOST_MACS:
        return None
    words = draw.choice((500, 2000))
    return Block(Masked(words, tokens, heads, size), torch.randint(1, words, (1, tokens)))


def _detecting(draw: random.Random) -> Block | None:
    width, side = _width(draw, 16, 256), draw.choice(SIDES[:14])
    boxes = draw.choice((12, 24, 36, 84))
    if not _is_fit(3 * width**2 * side**2, width * side**2):
        return None
    return Block(Detecting(width, boxes, draw.choice((2, 6))), _image(width, side))


def _shuffled(draw: random.Random) -> Block | None:
    width, side = 8 * draw.randrange(1, 16), draw.choice(SIDES[:14])
    if not _is_fit(7 * width**2 * side**2, 2 * width * side**2):
        return None
    return Block(Shuffled(width), _image(2 * width, side))


def _padded(draw: random.Random) -> Block | None:
    """A strided layer as TensorFlow pads it: below and to the right alone."""
    inputs, width, side = _width(draw, 3, 96), _width(draw, 8, 128), 2 * draw.randrange(8, 113)
    if not _is_fit(9 * inputs * width * (side / 2) ** 2, max(inputs, width / 4) * side**2):
        return None
    layers = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(inputs, width, 3, 2), _act(draw))
    return Block(layers, _image(inputs, side))


def _activated(draw: random.Random) -> Block | None:
    """All that is rare, at sizes from a few numbers to many: networks have them at any."""
    width, side = _width(draw, 8, 512), draw.choice(SIDES)
    if not _is_fit(SLIM * width * side**2, 2 * width * side**2):
        return None
    acts = [make() for make in draw.sample(ACTIVATIONS, len(ACTIVATIONS))]
    return Block(Activated(SLIM, width, acts), _image(SLIM, side))


def _row(draw: random.Random) -> Block | None:
    widths = [_width(draw, 16, 2048) for _ in range(3)]
    act = draw.choice((nn.ReLU, nn.Tanh, nn.Sigmoid))()
    return Block(Layers(widths, act), torch.randn(1, widths[0]))
