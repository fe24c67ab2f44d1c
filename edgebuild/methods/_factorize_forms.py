"""The forms in which thin layers replace a layer: what they cost, and their best weights.

Every form is fitted to a second moment, the mean of x xᵀ over the patches x that the layer reads,
so that the mean squared difference of the outputs is least: tr((W - W') moment (W - W')ᵀ).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from edgebuild.vocabulary.offer import LayerShape, macs, output_extent, weights
from edgebuild.vocabulary.precision import LayerKind

# What is added to the diagonal of a moment, as a share of its mean: directions that the samples
# hardly show still count a little.
RIDGE = 1e-3
# The same for kernels, as little as the solver needs.
UNREAD = 1e-9
# How often kernels and what mixes them take turns to be fitted.
TURNS = 3
# How finely the ranks of a core divide the layer's widths.
STEPS = 64


class Form(Protocol):
    """How thin layers replace a layer, with their ranks."""

    @property
    def option(self) -> str:
        """As a choice names it."""
        ...

    @classmethod
    def sizes(cls, layer: LayerShape, multiple: int) -> list[Form]:
        """The form with ranks of that multiple, growing; none where it does not suit the layer."""
        ...

    @staticmethod
    def suits(layer: LayerShape) -> bool:
        """Whether the layer can take this form, with whatever ranks."""
        ...

    def within(self, layer: LayerShape) -> Form:
        """The same form with no larger ranks than the layer itself can have."""
        ...

    def thinner(self) -> Form:
        """The form with ranks smaller by one, but not below one."""
        ...

    def shapes(self, layer: LayerShape) -> tuple[LayerShape, ...]:
        """The layers that stand in the layer's stead, in order."""
        ...

    def factors(self, weight: Tensor, moment: Tensor) -> tuple[Tensor, ...]:
        """Their weights, given the layer's own, (outputs, inputs, …), and what it reads, (n, n)."""
        ...


@dataclass(frozen=True)
class Rank:
    """A linear layer or a 1×1 convolution as two: into `rank` features, and out of them.

    The truncated singular value decomposition in the metric of the layer's inputs, which is the
    best there is: Wang et al., SVD-LLM, arXiv 2403.07378. All features have the mean square that
    the inputs have on average, so that one scale serves them when they are quantized.
    """

    rank: int

    @property
    def option(self) -> str:
        return f"rank {self.rank}"

    @classmethod
    def sizes(cls, layer: LayerShape, multiple: int) -> list[Form]:
        if not cls.suits(layer):
            return []
        full = min(layer.inputs, layer.outputs)
        return [cls(rank) for rank in range(multiple, full + 1, multiple)]

    @staticmethod
    def suits(layer: LayerShape) -> bool:
        return layer.groups == 1 and all(size == 1 for size in layer.kernel)

    def within(self, layer: LayerShape) -> Rank:
        return Rank(min(self.rank, layer.inputs, layer.outputs))

    def thinner(self) -> Rank:
        return Rank(max(self.rank - 1, 1))

    def shapes(self, layer: LayerShape) -> tuple[LayerShape, ...]:
        into = replace(layer, outputs=self.rank)
        return into, _pointwise(layer, self.rank, output_extent(layer))

    def factors(self, weight: Tensor, moment: Tensor) -> tuple[Tensor, ...]:
        left, right = low_rank(weight.flatten(1), moment, self.rank)
        kernel = weight.shape[2:]
        return right.reshape(*right.shape, *kernel), left.reshape(*left.shape, *kernel)


@dataclass(frozen=True)
class Spatial:
    """A convolution as two: one over height into `rank` features, and one over width out of them.

    Jaderberg et al., arXiv 1405.3866. The first is found in the metric of the columns that it
    reads, as if columns side by side had nothing in common; the second is then the best there is.
    """

    rank: int

    @property
    def option(self) -> str:
        return f"spatial rank {self.rank}"

    @classmethod
    def sizes(cls, layer: LayerShape, multiple: int) -> list[Form]:
        if not cls.suits(layer):
            return []
        return [cls(rank) for rank in range(multiple, _full_rank(layer) + 1, multiple)]

    @staticmethod
    def suits(layer: LayerShape) -> bool:
        return layer.groups == 1 and len(layer.kernel) == 2 and min(layer.kernel) > 1

    def within(self, layer: LayerShape) -> Spatial:
        return Spatial(min(self.rank, _full_rank(layer)))

    def thinner(self) -> Spatial:
        return Spatial(max(self.rank - 1, 1))

    def shapes(self, layer: LayerShape) -> tuple[LayerShape, ...]:
        along = replace(
            layer,
            outputs=self.rank,
            kernel=(layer.kernel[0], 1),
            stride=(layer.stride[0], 1),
            padding=(layer.padding[0], 0),
            dilation=(layer.dilation[0], 1),
        )
        across = replace(
            layer,
            inputs=self.rank,
            extent=output_extent(along),
            kernel=(1, layer.kernel[1]),
            stride=(1, layer.stride[1]),
            padding=(0, layer.padding[1]),
            dilation=(1, layer.dilation[1]),
        )
        return along, across

    def factors(self, weight: Tensor, moment: Tensor) -> tuple[Tensor, ...]:
        outputs, inputs, high, wide = weight.shape
        columns = weight.permute(0, 3, 1, 2).reshape(outputs * wide, inputs * high)

        def fitted(metric: Tensor) -> Fit:
            apart = metric.reshape(inputs, high, wide, inputs, high, wide)
            seen = torch.einsum("ahwbgw->ahbg", apart).reshape(inputs * high, inputs * high)
            along = low_rank(columns, seen, self.rank)[1].reshape(self.rank, inputs, high)
            across = torch.eye(wide, dtype=weight.dtype, device=weight.device)
            reader = torch.einsum("rih,wx->rwihx", along, across).reshape(self.rank * wide, -1)
            left = regression(weight.flatten(1), moment, reader)
            made = along[..., None], left.reshape(outputs, self.rank, 1, wide)
            return Fit(made, left @ reader)

        return _better_of_two(fitted, weight, moment)


@dataclass(frozen=True)
class Tucker:
    """A convolution as three: 1×1 into fewer channels, the kernel on these, and 1×1 out again.

    Kim et al., arXiv 1511.06530. The first is found in the metric of the channels alone; the two
    others are then the best there are.
    """

    inputs: int
    outputs: int

    @property
    def option(self) -> str:
        return f"tucker {self.inputs} x {self.outputs}"

    @classmethod
    def sizes(cls, layer: LayerShape, multiple: int) -> list[Form]:
        if not cls.suits(layer):
            return []
        # Both ranks grow with the layer's widths.
        widths = (layer.inputs, layer.outputs)
        cores = [
            cls(*(step * width // STEPS // multiple * multiple for width in widths))
            for step in range(1, STEPS)
        ]
        growing = [core for core in dict.fromkeys(cores) if min(core.inputs, core.outputs) > 0]
        return [core for core in growing if core.within(layer) == core]

    @staticmethod
    def suits(layer: LayerShape) -> bool:
        return layer.groups == 1 and len(layer.kernel) == 2 and max(layer.kernel) > 1

    def within(self, layer: LayerShape) -> Tucker:
        size = layer.kernel[0] * layer.kernel[1]
        inputs = min(self.inputs, layer.inputs, layer.outputs * size)
        return Tucker(inputs, min(self.outputs, layer.outputs, inputs * size))

    def thinner(self) -> Tucker:
        return Tucker(max(self.inputs - 1, 1), max(self.outputs - 1, 1))

    def shapes(self, layer: LayerShape) -> tuple[LayerShape, ...]:
        core = replace(layer, inputs=self.inputs, outputs=self.outputs)
        return (
            replace(_pointwise(layer, layer.inputs, layer.extent), outputs=self.inputs),
            core,
            _pointwise(layer, self.outputs, output_extent(layer)),
        )

    def factors(self, weight: Tensor, moment: Tensor) -> tuple[Tensor, ...]:
        outputs, inputs, high, wide = weight.shape
        channels = weight.permute(0, 2, 3, 1).reshape(outputs * high * wide, inputs)

        def fitted(metric: Tensor) -> Fit:
            apart = metric.reshape(inputs, high * wide, inputs, high * wide)
            seen = torch.einsum("axbx->ab", apart)
            into = low_rank(channels, seen, self.inputs)[1]
            places = torch.eye(high * wide, dtype=weight.dtype, device=weight.device)
            reader = torch.einsum("ri,px->rpix", into, places).reshape(len(into) * len(places), -1)
            whole = regression(weight.flatten(1), moment, reader)
            left, right = low_rank(whole, reader @ moment @ reader.T, self.outputs)
            core = right.reshape(self.outputs, self.inputs, high, wide)
            made = into[..., None, None], core, left[..., None, None]
            return Fit(made, left @ right @ reader)

        return _better_of_two(fitted, weight, moment)


@dataclass(frozen=True)
class Separable:
    """A convolution as a depthwise one, a kernel a channel, and a 1×1 one that mixes these.

    Guo et al., Network Decoupling, arXiv 1808.05517, of rank one. Given the kernels the mixing is
    the best there is, and given the mixing the kernels are: they take turns.
    """

    @property
    def option(self) -> str:
        return "separable"

    @classmethod
    def sizes(cls, layer: LayerShape, multiple: int) -> list[Form]:
        return [cls()] if cls.suits(layer) else []

    @staticmethod
    def suits(layer: LayerShape) -> bool:
        is_kernel = len(layer.kernel) == 2 and max(layer.kernel) > 1
        return layer.groups == 1 and layer.inputs > 1 and is_kernel

    def within(self, layer: LayerShape) -> Separable:
        return self

    def thinner(self) -> Separable:
        return self

    def shapes(self, layer: LayerShape) -> tuple[LayerShape, ...]:
        kernels = replace(
            layer, kind=LayerKind.DEPTHWISE, outputs=layer.inputs, groups=layer.inputs
        )
        return kernels, _pointwise(layer, layer.inputs, output_extent(layer))

    def factors(self, weight: Tensor, moment: Tensor) -> tuple[Tensor, ...]:
        _, inputs, high, wide = weight.shape
        matrix = weight.flatten(1)

        def fitted(metric: Tensor) -> Fit:
            apart = metric.reshape(inputs, high * wide, inputs, high * wide)
            own = torch.einsum("apaq->apq", apart)
            each = zip(weight.flatten(2).unbind(1), own, strict=True)
            kernels = torch.cat([low_rank(one, seen, 1)[1] for one, seen in each])
            mixing = regression(matrix, metric, _apart(kernels))
            for _ in range(TURNS):
                kernels = _kernels(matrix, apart, mixing)
                # One scale serves all channels when they are quantized.
                size = torch.einsum("ap,apq,aq->a", kernels, own, kernels).sqrt()
                kernels = kernels / size.clamp_min(torch.finfo(size.dtype).tiny)[:, None]
                mixing = regression(matrix, metric, _apart(kernels))
            made = kernels.reshape(inputs, 1, high, wide), mixing[..., None, None]
            return Fit(made, mixing @ _apart(kernels))

        return _better_of_two(fitted, weight, moment)


@dataclass(frozen=True)
class Fit:
    """The weights of thin layers, and the one matrix, (outputs, n), that they amount to."""

    made: tuple[Tensor, ...]
    matrix: Tensor


FORMS: Mapping[str, type[Rank] | type[Spatial] | type[Tucker] | type[Separable]] = {
    r"rank (\d+)": Rank,
    r"spatial rank (\d+)": Spatial,
    r"tucker (\d+) x (\d+)": Tucker,
    r"separable": Separable,
}


def form_of(option: str) -> Form:
    """Reads a choice's option.

    Raises:
        ValueError: words that no form has, or a rank of zero.
    """
    for pattern, form in FORMS.items():
        found = re.fullmatch(pattern, option)
        if found and all(int(rank) > 0 for rank in found.groups()):
            return form(*map(int, found.groups()))
    raise ValueError(f"{option!r} is no form that a layer can take")


def forms_of(layer: LayerShape, multiple: int) -> Iterator[list[Form]]:
    """Each form that suits a layer, in all its sizes with ranks of that multiple, growing."""
    yield from (sizes for form in FORMS.values() if (sizes := form.sizes(layer, multiple)))


def is_lighter(form: Form, layer: LayerShape) -> bool:
    """Whether the form takes fewer multiply-accumulates and fewer weights than the layer."""
    thin = form.shapes(layer)
    return sum(map(macs, thin)) < macs(layer) and sum(map(weights, thin)) < weights(layer)


def regularized(moment: Tensor) -> Tensor:
    """A moment that can be inverted, with a mean of about one on its diagonal."""
    scale = moment.diagonal().mean().clamp_min(torch.finfo(moment.dtype).tiny)
    eye = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    return moment / scale + RIDGE * eye


def low_rank(matrix: Tensor, moment: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The left (m, rank) and right (rank, n) whose product is nearest to a matrix (m, n).

    Nearest as the moment (n, n) measures it; right @ moment @ right.T is the identity.
    """
    root = torch.linalg.cholesky(moment)
    seen = matrix @ root
    if len(seen) < len(root):
        _, _, directions = torch.linalg.svd(seen, full_matrices=False)
    else:
        # The same directions in a third of the time; what squaring costs in precision is in those
        # that hardly matter.
        directions = torch.linalg.eigh(seen.T @ seen)[1].T.flip(0)
    kept = directions[:rank]
    back = torch.linalg.solve_triangular(root, kept, upper=False, left=False)
    return seen @ kept.T, back


def regression(matrix: Tensor, moment: Tensor, reader: Tensor) -> Tensor:
    """The left (m, k) that makes left @ reader nearest to a matrix (m, n), for a reader (k, n)."""
    read = reader @ moment
    left: Tensor = torch.linalg.solve(read @ reader.T, read @ matrix.T)
    return left.T


def _apart(kernels: Tensor) -> Tensor:
    """Reads each channel with its own kernel, (inputs, places): (inputs, inputs × places)."""
    eye = torch.eye(len(kernels), dtype=kernels.dtype, device=kernels.device)
    return torch.einsum("ab,bp->abp", eye, kernels).flatten(1)


def _kernels(matrix: Tensor, moment: Tensor, mixing: Tensor) -> Tensor:
    """The kernels, (inputs, places), that are best for a mixing (outputs, inputs).

    The moment is (inputs, places, inputs, places), the matrix (outputs, inputs × places).
    """
    inputs, places = moment.shape[:2]
    count = inputs * places
    alike = torch.einsum("ab,apbq->apbq", mixing.T @ mixing, moment).reshape(count, count)
    # A channel that the mixing does not read may have any kernel.
    alike.diagonal().add_(UNREAD * alike.diagonal().mean())
    read = (matrix @ moment.reshape(count, count)).reshape(len(matrix), inputs, places)
    wanted = torch.einsum("oa,oap->ap", mixing, read)
    found: Tensor = torch.linalg.solve(alike, wanted.flatten())
    return found.reshape(inputs, places)


def _better_of_two(
    fitted: Callable[[Tensor], Fit], weight: Tensor, moment: Tensor
) -> tuple[Tensor, ...]:
    """The first layer is a guess; the plain one, which no inputs have shaped, is at times better.

    So what comes out is never worse on the samples than a decomposition of the weights alone.
    """

    def error(fit: Fit) -> float:
        missing = weight.flatten(1) - fit.matrix
        return float(torch.einsum("mi,ij,mj->", missing, moment, missing))

    plain = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    return min((fitted(moment), fitted(plain)), key=error).made


def _full_rank(layer: LayerShape) -> int:
    """Of the kernel as a matrix of (outputs × width, inputs × height)."""
    high, wide = layer.kernel
    return min(layer.inputs * high, layer.outputs * wide)


def _pointwise(layer: LayerShape, inputs: int, extent: tuple[int, ...]) -> LayerShape:
    """A layer that mixes what is at one place: linear, or a 1×1 convolution."""
    axes = len(layer.kernel)
    return replace(
        layer,
        inputs=inputs,
        extent=extent,
        kernel=(1,) * axes,
        stride=(1,) * axes,
        padding=(0,) * axes,
        dilation=(1,) * axes,
    )
