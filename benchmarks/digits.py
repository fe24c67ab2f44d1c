"""Workload: read handwritten digits of 8x8 pixels with a small residual network.

The fast one, for tests and a first try: scikit-learn's 1797 digits, trained in a few seconds.
"""

import torch
from prepared import Tensors, accuracy, prepared, stratified
from torch import Tensor, nn
from torch.nn import functional

from edgebuild import Workload

SEED = 0
EPOCHS = 20
NOTICES = {
    "Digits dataset": "CC-BY-4.0. Optical Recognition of Handwritten Digits, E. Alpaydin and "
    "C. Kaynak, UCI Machine Learning Repository, doi:10.24432/C50P49; as in scikit-learn.",
}


def workload() -> Workload:
    made = prepared(_prepare, (__file__,), ("scikit-learn",))
    images, labels = made.pop("images"), made.pop("labels")
    network = _network()
    network.load_state_dict(made)
    # One image to a pair, each with its batch dimension of one.
    pairs = list(zip(torch.split(images, 1), torch.split(labels, 1), strict=True))
    train, validation, test = (
        [(pairs[row][0], pairs[row][1].numpy()) for row in rows.tolist()]
        for rows in stratified(labels, SEED)
    )
    return Workload(
        name="digits",
        network=network.eval(),
        example=(train[0][0],),
        calibration=train,
        validation=validation,
        test=test,
        score=accuracy,
        notices=NOTICES,
    )


class Residual(nn.Module):
    """Add what a convolution finds to what it was given."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_convolution(channels, channels))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layers(inputs)
        return inputs + outputs


def _network() -> nn.Sequential:
    return nn.Sequential(
        *_convolution(1, 16),
        Residual(16),
        *_convolution(16, 32, stride=2),
        Residual(32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def _convolution(channels: int, out_channels: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU()]


def _prepare() -> Tensors:
    """Images from 0 to 1, labels, and the weights of the trained network."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    train, _, _ = stratified(labels, SEED)
    return {"images": images, "labels": labels, **_trained(images[train], labels[train])}


def _trained(images: Tensor, labels: Tensor) -> Tensors:
    threads = torch.get_num_threads()
    # A forked generator fixes the seed here and leaves the caller's randomness alone.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        # One thread adds in one order, so the weights don't depend on the number of cores.
        torch.set_num_threads(1)
        network = _network().train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
        for _ in range(EPOCHS):
            for rows in torch.split(torch.randperm(len(labels)), 64):
                optimizer.zero_grad()
                loss = functional.cross_entropy(network(images[rows]), labels[rows])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            schedule.step()
    torch.set_num_threads(threads)
    return network.state_dict()
