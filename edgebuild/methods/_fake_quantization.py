"""Trains a network as if its weights and the inputs of its layers were integers already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)

ACTIVATION_STEPS = 255
# How much of a range stays when a batch with another one comes.
MEMORY = 0.9
# Clipping a channel below this share of its largest weight is never worth it.
LOWEST_SHARE = 0.1
# The shares of the largest weight that the first clip is picked from.
FIRST_SHARES = torch.linspace(1.0, 0.4, 13)
TINY = 1e-12


def fake_quantize(network: nn.Module, steps: int) -> None:
    """Puts rounding into every linear layer and convolution of a network, in place.

    Weights lie on a symmetric grid of `steps` on either side of zero, one scale for each output
    channel; inputs on 255 asymmetric steps over the range that batches in training mode have.
    Gradients pass through the rounding as through an identity (Bengio et al., arXiv 1308.3432).
    Weights that other modules share stay as they are.
    """
    owners = Counter(id(weight) for _, weight in _all_weights(network))
    for layer in [module for module in network.modules() if isinstance(module, LAYERS)]:
        if owners[id(layer.weight)] > 1:
            continue
        axis = 1 if isinstance(layer, TRANSPOSED) else 0
        rounding = RoundedWeight(layer.weight, axis, steps)
        parametrize.register_parametrization(layer, "weight", rounding)
        layer.rounded_input = RoundedInput()
        layer.register_forward_pre_hook(_round_input)


def _all_weights(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for module in network.modules():
        yield from module.named_parameters(recurse=False, remove_duplicate=False)


def _round_input(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    rounded = layer.get_submodule("rounded_input")
    return (rounded(inputs[0]), *inputs[1:])


def leave_rounded(network: nn.Module) -> None:
    """Takes the rounding out again, in place; the weights stay on their grid.

    In every channel the largest weight is at the end of the grid, so that rounding to the
    nearest step of the channel's maximum finds the same integers again.
    """
    for layer in network.modules():
        if isinstance(layer, LAYERS) and parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight")
            # The weight came back as the last of the layer's parameters; it was the first.
            layer.register_parameter("bias", layer._parameters.pop("bias"))
            del layer.rounded_input
            for number, hook in list(layer._forward_pre_hooks.items()):
                if hook is _round_input:
                    del layer._forward_pre_hooks[number]


class RoundedWeight(nn.Module):
    """A weight on a symmetric grid, clipped in each channel at a learned share of its largest.

    The gradient of the clip is that of the learned step size (Esser et al., LSQ, arXiv
    1902.08153). A share of 1 clips nothing, and a clip above the largest weight is not possible:
    the grid would not be found again.
    """

    share: nn.Parameter

    def __init__(self, weight: Tensor, axis: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.others = [other for other in range(weight.ndim) if other != axis]
        self.share = nn.Parameter(self._best_shares(weight.detach()))

    def _best_shares(self, weight: Tensor) -> Tensor:
        """The clip of each channel with the smallest squared error."""
        shares = FIRST_SHARES.to(weight.dtype)
        errors = [
            (self._rounded(weight, share) - weight).square().sum(self.others) for share in shares
        ]
        return shares[torch.stack(errors).argmin(dim=0)]

    def forward(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            self.share.clamp_(LOWEST_SHARE, 1.0)
        axes = [1 if axis in self.others else -1 for axis in range(weight.ndim)]
        return self._rounded(weight, self.share.reshape(axes))

    def _rounded(self, weight: Tensor, share: Tensor) -> Tensor:
        largest = weight.detach().abs().amax(dim=self.others, keepdim=True)
        scale = (share * largest).clamp_min(TINY) / self.steps
        return _straight_through((weight / scale).clamp(-self.steps, self.steps)) * scale


class RoundedInput(nn.Module):
    """Activations on 255 steps over a range that holds zero and follows the batches in training.

    The range is a moving average (Jacob et al., arXiv 1712.05877): an exporter finds its own, so
    that learning one would teach the weights something that will not be there.
    """

    low: Tensor
    high: Tensor
    was_seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("was_seen", torch.tensor(False))

    def forward(self, values: Tensor) -> Tensor:
        if self.training:
            self._watch(values.detach())
        scale = (self.high - self.low).clamp_min(TINY) / ACTIVATION_STEPS
        zero = (-self.low / scale).round()
        rounded = _straight_through((values / scale + zero).clamp(0, ACTIVATION_STEPS))
        return (rounded - zero) * scale

    def _watch(self, values: Tensor) -> None:
        memory = MEMORY if self.was_seen else 0.0
        low, high = torch.aminmax(values)
        self.low.lerp_(low.clamp_max(0.0), 1 - memory)
        self.high.lerp_(high.clamp_min(0.0), 1 - memory)
        self.was_seen.fill_(True)


def _straight_through(values: Tensor) -> Tensor:
    return values + (values.round() - values).detach()
