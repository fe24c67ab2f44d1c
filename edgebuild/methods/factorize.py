"""Replaces a large linear layer or convolution by two or three thin ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from edgebuild.methods._factorize_forms import (
    Form,
    form_of,
    forms_of,
    is_lighter,
    regularized,
)
from edgebuild.methods._input_moments import calibration, kept_moments, second_moments
from edgebuild.methods._own_layers import (
    Layer,
    OwnLayer,
    chosen_layers,
    own_layers,
    replaceable,
)
from edgebuild.vocabulary.contracts import WORKPLACE, Stage, Workplace
from edgebuild.vocabulary.errors import MethodFailed
from edgebuild.vocabulary.offer import Choice, LayerShape, Offer, Part, PartKind, macs
from edgebuild.vocabulary.precision import LayerKind
from edgebuild.vocabulary.target import RuntimeFacts
from edgebuild.vocabulary.workload import Workload

# The multiply-accumulates that are left of a layer's, at most.
SHARES = (3 / 4, 1 / 2, 1 / 3, 1 / 4)
# One more operator takes 0.1 to 0.5 µs, measured in LiteRT and onnxruntime on x86: as long as so
# many multiply-accumulates, and no smaller layer became faster in either.
LEAST_MACS = 16_000
LOOKED_INTO = "the network reads more of it than what it puts out"


@dataclass(frozen=True)
class Factorize:
    """Low-rank factorization, fitted to what each layer reads on calibration samples.

    Linear layers and 1×1 convolutions become two of a rank (SVD-LLM, arXiv 2403.07378), other
    convolutions one over height and one over width (arXiv 1405.3866), a core between two 1×1
    convolutions (Tucker-2, arXiv 1511.06530), or a depthwise one before a 1×1 one (arXiv
    1808.05517). The bias stays in the last one; they stand in an `nn.Sequential` in the layer's
    place.

    Attributes:
        samples: how many calibration samples are looked at.
    """

    stage: ClassVar[Stage] = Stage.FACTORIZE
    samples: int = 64

    def offers(self, workload: Workload, runtime: RuntimeFacts) -> Iterator[Offer]:
        """A few ranks a layer, where that leaves at most three quarters of its work.

        Ranks are multiples of the runtime's `channel_multiple`. Never offered are grouped and
        depthwise convolutions, and layers of fewer than 16,000 multiply-accumulates, which the
        operators that are added would make slower.
        """
        layers = own_layers(workload.network, workload.example)
        for path in replaceable(workload.network, workload.example, _large(layers)):
            shape = layers[path].shape
            for sizes in forms_of(shape, runtime.channel_multiple):
                for form in _few(sizes, shape):
                    yield Offer(
                        Part(path, PartKind.LAYER),
                        Choice("factorize", form.option),
                        replaced={path: form.shapes(shape)},
                    )

    def declined(self, workload: Workload, runtime: RuntimeFacts) -> Mapping[str, str]:
        layers = _large(own_layers(workload.network, workload.example))
        free = set(replaceable(workload.network, workload.example, layers))
        declined = dict.fromkeys((path for path in layers if path not in free), LOOKED_INTO)
        if free and not any(True for _ in self.offers(workload, runtime)):
            declined[""] = "no rank that the runtime likes saves enough work at any layer"
        return declined if layers else {"": "no layer is large enough for two to be faster"}

    def apply(
        self,
        network: nn.Module,
        chosen: Mapping[Part, Choice],
        workload: Workload,
        workplace: Workplace = WORKPLACE,
    ) -> nn.Module:
        """A copy with the chosen layers replaced.

        A layer may be narrower than the workload's own by now: a rank is then the largest one up
        to the chosen that still saves weights and multiply-accumulates. A layer that is gone by
        now needs nothing.

        Raises:
            MethodFailed: no such layer, or one that the network looks into; a form that does not
                suit it; a layer too narrow for any rank, or that no calibration sample reaches.
        """
        layers = chosen_layers(network, chosen, workload)
        _refuse_looked_into(network, workload, list(layers))
        forms = {path: _form(layer, choice) for path, (layer, choice) in layers.items()}
        own = {path: layer for path, (layer, _) in layers.items()}
        changed = copy.deepcopy(network).eval()
        with workplace.progress.step("Factorizing", total=len(own)) as step:
            for path, moment in self._moments(network, own, workload):
                thin = factorized(own[path], forms[path], regularized(moment))
                changed.set_submodule(path, thin)
                step.advance(path)
        return changed

    def _moments(
        self, network: nn.Module, own: Mapping[str, OwnLayer], workload: Workload
    ) -> Iterator[tuple[str, Tensor]]:
        if network is workload.network:
            yield from kept_moments(workload, own, self.samples)
            return
        with calibration(workload, self.samples) as samples:
            yield from second_moments(network, own, samples)


def _large(layers: Mapping[str, OwnLayer]) -> list[str]:
    return [path for path, layer in layers.items() if layer.macs >= LEAST_MACS]


def factorized(layer: OwnLayer, form: Form, moment: Tensor) -> nn.Sequential:
    """The thin layers that stand in a layer's stead, fitted to a moment that can be inverted."""
    weight = layer.module.weight
    found = form.factors(weight.detach().double(), moment.to(weight.device))
    thin = [
        _layer(shape, factor.to(weight.dtype), weight.requires_grad)
        for shape, factor in zip(form.shapes(layer.shape), found, strict=True)
    ]
    thin[-1].bias = copy.deepcopy(layer.module.bias)
    return nn.Sequential(*thin).eval()


def _few(sizes: Sequence[Form], layer: LayerShape) -> list[Form]:
    """The largest size that leaves at most each of the shares of the layer's work."""
    costs = {form: sum(map(macs, form.shapes(layer))) for form in sizes if is_lighter(form, layer)}
    growing = sorted(costs, key=costs.__getitem__)
    within = [[form for form in growing if costs[form] <= share * macs(layer)] for share in SHARES]
    return list(dict.fromkeys(forms[-1] for forms in within if forms))


def _refuse_looked_into(network: nn.Module, workload: Workload, paths: Sequence[str]) -> None:
    if missed := set(paths) - set(replaceable(network, workload.example, paths)):
        raise MethodFailed(f"{min(missed)}: {LOOKED_INTO}")


def _form(layer: OwnLayer, choice: Choice) -> Form:
    """The chosen form, with ranks that save something at the layer as it is now."""
    try:
        form = form_of(choice.option)
    except ValueError as error:
        raise MethodFailed(f"{layer.path}: {error}") from None
    shape = layer.shape
    if not form.suits(shape):
        raise MethodFailed(f"{layer.path}: {choice.option} does not suit a {_words(shape)}")
    form = form.within(shape)
    while not is_lighter(form, shape):
        if form.thinner() == form:
            raise MethodFailed(
                f"{layer.path}: {shape.inputs} inputs and {shape.outputs} outputs are too few to "
                f"save anything by {choice.option}"
            )
        form = form.thinner().within(shape)
    return form


def _words(shape: LayerShape) -> str:
    kernel = "×".join(map(str, shape.kernel))
    groups = f" in {shape.groups} groups" if shape.groups > 1 else ""
    return f"{kernel} {shape.kind}{groups}".strip()


def _layer(shape: LayerShape, weight: Tensor, is_trained: bool) -> Layer:
    """A layer of this shape and these weights, without a bias."""
    made: Layer
    # Its first weights are drawn by chance and thrown away: not from the caller's chance.
    with torch.random.fork_rng(devices=[]):
        if shape.kind is LayerKind.LINEAR:
            made = nn.Linear(shape.inputs, shape.outputs, bias=False)
        else:
            places = (shape.kernel, shape.stride, shape.padding, shape.dilation)
            made = nn.Conv2d(
                shape.inputs,
                shape.outputs,
                *places,  # type: ignore[arg-type]
                groups=shape.groups,
                bias=False,
            )
    made.weight = nn.Parameter(weight.contiguous(), requires_grad=is_trained)
    return made
