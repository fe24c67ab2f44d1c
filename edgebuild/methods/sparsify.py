"""Zeroes the weights that matter least, which makes a model smaller to store but not faster."""

from __future__ import annotations

import copy
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgebuild.methods._factorize_forms import regularized
from edgebuild.methods._input_moments import calibration, second_moments
from edgebuild.methods._own_layers import Layer, OwnLayer, chosen_layers, own_layers
from edgebuild.vocabulary.contracts import WORKPLACE, Stage, Workplace
from edgebuild.vocabulary.errors import MethodFailed
from edgebuild.vocabulary.offer import Choice, Offer, Part, PartKind
from edgebuild.vocabulary.target import RuntimeFacts
from edgebuild.vocabulary.units import Bytes
from edgebuild.vocabulary.workload import Workload

OPTIONS = (
    "2:4",
    "unstructured 50 %",
    "unstructured 70 %",
    "unstructured 80 %",
    "unstructured 90 %",
)
# Zeros in a smaller layer save no hundred bytes, and are missed the most.
LEAST_WEIGHTS = 1024
# On a small network 16 were as good as the exact solution, which on a large layer takes minutes.
REFITTING_STEPS = 32

# Measured on x86 with AVX-512, one thread. onnxruntime 1.32: a ResNet-18 and a MobileNetV2 with
# 80 and 90 % zeros were 0.98 to 1.04 times as fast. LiteRT 2.3.0: a MobileNetV2 at 224 with 90 %
# zeros in its 1×1 convolutions was 1.01 times as fast, stored dense or as sparse tensors: XNNPACK
# uses sparse kernels on no x86 with AVX (`xnn_is_chw_compatible_config`). With AVX hidden from it,
# so that dense and sparse kernels are both four wide as on ARM, it was 2.6 times as fast with 80 %
# and 3.2 times with 90 % zeros. That needs a file with sparse tensors behind DENSIFY; a first 3×3
# convolution of stride 2 over three channels; then nothing but 1×1 and depthwise convolutions; a
# MEAN over height and width at the end, without the TRANSPOSE that our exporter puts before it; and
# zeros in two thirds of the weights of all 1×1 and fully connected layers together.
NO_GAIN: Mapping[str, str] = {
    "onnxruntime": "onnxruntime multiplies zeros like other numbers: measured 0.98 to 1.04 times "
    "as fast with 80 and 90 % zeros",
    "litert": "XNNPACK runs what the TFLite exporter writes on dense kernels: measured 1.01 times "
    "as fast with 90 % zeros; its sparse ones, not for x86 with AVX, need a file with sparse "
    "tensors",
}


@dataclass(frozen=True)
class Sparsify:
    """One-shot pruning of single weights: unstructured, or two of every four (2:4).

    It acts after `distill`, whose training would fill the zeros in again, and before `round`, from
    whose grids it would take the weights: last by name in the stage of recovery. Rounding to the
    nearest step of a symmetric grid keeps zeros. BatchNorm is left as it is.

    Attributes:
        storage_binds: whether storage is the budget line that nothing else meets; it is the only
            one that zeros were ever measured to help.
        samples: how many calibration samples are looked at.
    """

    stage: ClassVar[Stage] = Stage.RECOVER
    storage_binds: bool = False
    samples: int = 64

    def offers(self, workload: Workload, runtime: RuntimeFacts) -> Iterator[Offer]:
        """Every option at every large layer where storage binds; else nothing, as `declined` says.

        The layers keep their shapes, so that an offer names none. Grouped convolutions have few
        weights, and keep them.
        """
        if not self.storage_binds:
            return
        for path, layer in own_layers(workload.network, workload.example).items():
            if layer.shape.groups == 1 and layer.module.weight.numel() >= LEAST_WEIGHTS:
                for option in OPTIONS:
                    yield Offer(Part(path, PartKind.LAYER), Choice("sparsify", option))

    def declined(self, workload: Workload, runtime: RuntimeFacts) -> Mapping[str, str]:
        unknown = f"no gain of speed from zeros was ever measured in {runtime.name}"
        return {} if self.storage_binds else {"": NO_GAIN.get(runtime.name, unknown)}

    def apply(
        self,
        network: nn.Module,
        chosen: Mapping[Part, Choice],
        workload: Workload,
        workplace: Workplace = WORKPLACE,
    ) -> nn.Module:
        """A copy with zeros in the chosen layers' weights.

        A weight matters as much as its magnitude times the root mean square of what it is
        multiplied with on calibration samples (Sun et al., Wanda, arXiv 2306.11695). Those that
        stay are then fitted by least squares to what the layer put out there, without which a
        small network does not survive 70 % of zeros. A layer that is gone by now needs nothing.

        Raises:
            MethodFailed: no such layer, or a grouped one; an unknown option; or a layer that no
                calibration sample reaches.
        """
        layers = chosen_layers(network, chosen, workload)
        keepers = {path: _keeper(layer, choice) for path, (layer, choice) in layers.items()}
        own = {path: layer for path, (layer, _) in layers.items()}
        changed = copy.deepcopy(network).eval()
        with (
            calibration(workload, self.samples) as samples,
            workplace.progress.step("Sparsifying", total=len(own)) as step,
        ):
            for path, moment in second_moments(network, own, samples):
                weight = own[path].module.weight
                found = sparse(weight.detach(), moment.to(weight.device), keepers[path])
                layer = changed.get_submodule(path)
                assert isinstance(layer, Layer)
                layer.weight.data.copy_(found)
                step.advance(path)
        return changed


def compressed_size(path: Path) -> Bytes:
    """What a file takes in an archive: deflated at level 9, as in a wheel or an APK.

    The file is read piece by piece, however large it is.
    """
    packer = zlib.compressobj(9)
    size = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            size += len(packer.compress(piece))
    return Bytes(size + len(packer.flush()))


# Which weights stay, as a mask, by how much each matters.
Keeper = Callable[[Tensor], Tensor]


def sparse(weight: Tensor, moment: Tensor, keeper: Keeper) -> Tensor:
    """The weights, (outputs, inputs, …), with zeros, and the others fitted anew around them.

    The moment is the mean of x xᵀ over the patches x that are read, (n, n).
    """
    size = moment.diagonal().sqrt().reshape(1, *weight.shape[1:])
    kept = keeper(weight.abs() * size.to(weight)).flatten(1).double()
    found = _refit(weight.flatten(1).double(), kept, regularized(moment))
    return found.reshape(weight.shape).to(weight)


def _refit(rows: Tensor, kept: Tensor, metric: Tensor) -> Tensor:
    """The rows nearest to the given ones, as the metric measures it, with zeros outside the mask.

    By conjugate gradients on all rows at once, each step nearer than the one before.
    """
    tiny = torch.finfo(rows.dtype).tiny
    size = metric.diagonal()
    found = rows * kept
    rest = (rows - found) @ metric * kept
    way = rest / size
    power = (rest * way).sum(1, keepdim=True)
    for _ in range(REFITTING_STEPS):
        bent = way @ metric * kept
        step = power / (way * bent).sum(1, keepdim=True).clamp_min(tiny)
        found += step * way
        rest -= step * bent
        left = (rest * rest / size).sum(1, keepdim=True)
        way = rest / size + left / power.clamp_min(tiny) * way
        power = left
    return found


def keep_share(scores: Tensor, share: float) -> Tensor:
    """Which weights stay: in each output's row the same share, those with the best scores."""
    rows = scores.flatten(1)
    count = max(round(share * rows.shape[1]), 1)
    best = rows.topk(count, dim=1).indices
    return torch.zeros_like(rows).scatter_(1, best, 1.0).reshape(scores.shape)


def keep_two_of_four(scores: Tensor) -> Tensor:
    """Which weights stay: of four neighboring inputs at one place of a kernel, the two best.

    Of a last group of fewer than four at most two stay.
    """
    rows = scores.movedim(1, -1)
    missing = -rows.shape[-1] % 4
    padded = functional.pad(rows, (0, missing), value=-1.0)
    groups = padded.reshape(*rows.shape[:-1], -1, 4)
    best = groups.topk(2, dim=-1).indices
    kept = torch.zeros_like(groups).scatter_(-1, best, 1.0).flatten(-2)
    return kept[..., : rows.shape[-1]].movedim(-1, 1)


def _keeper(layer: OwnLayer, choice: Choice) -> Keeper:
    if layer.shape.groups > 1:
        raise MethodFailed(f"{layer.path}: is a convolution in {layer.shape.groups} groups")
    if choice.option == "2:4":
        return keep_two_of_four
    found = re.fullmatch(r"unstructured (\d{1,2}) %", choice.option)
    if not found:
        raise MethodFailed(f"{layer.path}: {choice.option!r} is no pattern of zeros")
    return partial(keep_share, share=1 - int(found[1]) / 100)
