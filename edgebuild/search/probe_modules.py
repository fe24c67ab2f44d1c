"""The networks in small that a probe times: each is a piece as whole networks have it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


class SideBySide(nn.Module):
    """Blocks that share nothing: no runtime can fuse or reorder anything between them."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(block(value) for block, value in zip(self.blocks, inputs, strict=True))


class Inverted(nn.Module):
    """Widen, filter each channel, narrow, as MobileNets do; the sum where the shape allows it."""

    def __init__(self, width: int, times: int, kernel: int, stride: int, act: nn.Module) -> None:
        super().__init__()
        wide = width * times
        self.widen = nn.Conv2d(width, wide, 1)
        self.filter = nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide)
        self.narrow = nn.Conv2d(wide, width, 1)
        self.act = act
        self.is_sum = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.narrow(self.act(self.filter(self.act(self.widen(x)))))
        return x + y if self.is_sum else y


class Residual(nn.Module):
    """Two full convolutions around a sum, as ResNets have them, after one that leads in."""

    def __init__(self, inputs: int, width: int, kernel: int, stride: int, act: nn.Module) -> None:
        super().__init__()
        self.lead = nn.Conv2d(inputs, width, kernel, stride, kernel // 2)
        self.first = nn.Conv2d(width, width, kernel, 1, kernel // 2)
        self.second = nn.Conv2d(width, width, kernel, 1, kernel // 2)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.lead(x))
        out: Tensor = self.act(y + self.second(self.act(self.first(y))))
        return out


class Gated(nn.Module):
    """Channels weighed by what the whole image holds: squeeze and excitation."""

    def __init__(self, width: int, kernel: int, gate: nn.Module) -> None:
        super().__init__()
        self.filter = nn.Conv2d(width, width, kernel, 1, kernel // 2, groups=width)
        self.down = nn.Conv2d(width, max(width // 4, 8), 1)
        self.up = nn.Conv2d(max(width // 4, 8), width, 1)
        self.out = nn.Conv2d(width, width, 1)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.filter(x))
        weight = self.gate(self.up(functional.relu(self.down(y.mean((2, 3), keepdim=True)))))
        out: Tensor = self.out(y * weight)
        return out


class Pooled(nn.Module):
    """A pooling between two convolutions."""

    def __init__(self, inputs: int, width: int, pool: nn.Module) -> None:
        super().__init__()
        self.before = nn.Conv2d(inputs, width, 3, 1, 1)
        self.pool = pool
        self.after = nn.Conv2d(width, inputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.after(self.pool(functional.relu(self.before(x))))
        return out


class Joined(nn.Module):
    """What lies deeper, made larger and put beside what lies higher: a decoder's step."""

    def __init__(self, width: int, grow: nn.Module) -> None:
        super().__init__()
        self.down = nn.Conv2d(width, width, 3, 2, 1)
        self.grow = grow
        self.side = nn.Conv2d(width, width, 1)
        self.out = nn.Conv2d(2 * width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        grown = self.grow(functional.relu(self.down(x)))
        out: Tensor = self.out(torch.cat([grown, self.side(x)], 1))
        return out


class Classified(nn.Module):
    """The end of a classifier: the mean of an image, and a layer of one row."""

    def __init__(self, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        self.last = nn.Conv2d(inputs, width, 1)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(functional.relu(self.last(x)).mean((2, 3)))
        return out


class Attention(nn.Module):
    """A transformer's block, with its norms after or before."""

    def __init__(self, width: int, heads: int, times: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, times * width), nn.Linear(times * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        query, key = self._split(self.query(y)), self._split(self.key(y))
        seen = functional.scaled_dot_product_attention(query, key, self._split(self.value(y)))
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        out: Tensor = x + self.down(functional.gelu(self.up(self.between(x))))
        return out

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(1, -1, self.heads, self.size).transpose(1, 2)


class Masked(nn.Module):
    """Words to attention as BERT has it: one layer for all three parts, a mask, norms after."""

    def __init__(self, words: int, tokens: int, heads: int, size: int) -> None:
        super().__init__()
        width = heads * size
        self.heads, self.size = heads, size
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(tokens, width)
        self.first, self.after, self.last = (nn.LayerNorm(width) for _ in range(3))
        self.parts, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, ids: Tensor) -> Tensor:
        mask = (ids > 0).to(torch.float32)
        x = self.first(self.words(ids) + self.places(torch.arange(ids.shape[1])))
        query, key, value = (
            part.reshape(1, -1, self.heads, self.size).transpose(1, 2)
            for part in self.parts(x).chunk(3, -1)
        )
        looks = query @ key.transpose(-1, -2) * self.size**-0.5
        looks = (looks + (1 - mask[:, None, None, :]) * -1e4).softmax(-1)
        x = self.after(x + self.out((looks @ value).transpose(1, 2).flatten(2)))
        x = self.last(x + self.down(functional.gelu(self.up(x))))
        counts = mask[:, :, None]
        return functional.normalize((x * counts).sum(1) / counts.sum(1))


class Detecting(nn.Module):
    """Boxes of several maps in one list, as detectors put them out."""

    def __init__(self, width: int, boxes: int, maps: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(width, width, 3, 2, 1)
        self.fine = nn.Conv2d(width, boxes, 1)
        self.coarse = nn.ModuleList(nn.Conv2d(width, boxes, 1) for _ in range(maps - 1))
        self.boxes = boxes

    def forward(self, x: Tensor) -> Tensor:
        deeper = functional.relu(self.down(x))
        maps = [self.fine(x), *(head(deeper) for head in self.coarse)]
        rows = [one.permute(0, 2, 3, 1).reshape(1, -1, self.boxes) for one in maps]
        return torch.cat(rows, 1)


class Shuffled(nn.Module):
    """Half of the channels pass, half are computed, as in ShuffleNet and in CSP blocks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.side = nn.Conv2d(width, width, 3, 1, 1, groups=2)
        self.out = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x[:, : self.width], x[:, self.width :]
        joined = torch.cat([kept, functional.relu(self.side(changed))], 1)
        pairs = joined.reshape(1, 2, self.width, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        out: Tensor = self.out(pairs - joined.amax((2, 3), keepdim=True))
        return out


class Activated(nn.Module):
    """Functions one after the other: a runtime fuses the first of them into the layer, at most."""

    def __init__(self, inputs: int, width: int, acts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layer = nn.Conv2d(inputs, width, 1)
        self.acts = nn.Sequential(*acts)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.acts(self.layer(x))
        return out


class Layers(nn.Module):
    """Linear layers with a function between them, over tokens or over one row."""

    def __init__(self, widths: Sequence[int], act: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.act(layer(x))
        return x
