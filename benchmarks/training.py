"""Trains a small image classifier from random weights, to the same weights wherever it runs."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

BATCH = 128
WEIGHT_DECAY = 0.05


def trained(
    network: Callable[[], nn.Module],
    images: Tensor,
    labels: Tensor,
    view: Callable[[Tensor], Tensor],
    epochs: int,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The weights after AdamW with one cycle of the learning rate (Smith and Topin, 2018).

    Args:
        network: makes the network, (N, C, H, W) to (N, classes).
        images: (count, C, H, W), of any type that `view` takes.
        labels: (count,), whole numbers.
        view: turns a batch of images into inputs, in training only: normalizes, and may augment
            at random.
    """
    threads = torch.get_num_threads()
    # A forked generator fixes the seed here and leaves the caller's randomness alone.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # One thread adds in one order, so the weights don't depend on the number of cores.
        torch.set_num_threads(1)
        learner = network().train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(
            learner.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY
        )
        steps = epochs * -(-len(labels) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps)
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(len(labels)), BATCH):
                inputs = view(images[rows]).contiguous(memory_format=torch.channels_last)
                optimizer.zero_grad()
                loss = functional.cross_entropy(learner(inputs), labels[rows])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    torch.set_num_threads(threads)
    weights: dict[str, Tensor] = learner.to(memory_format=torch.contiguous_format).state_dict()
    return weights


def moved(images: Tensor) -> Tensor:
    """All images of a batch, (N, C, H, W), moved by the same few pixels around their edges."""
    rows, columns = torch.randint(-2, 3, (2,)).tolist()
    return torch.roll(images, (rows, columns), (2, 3))


def shaded(images: Tensor) -> Tensor:
    """Each image of a batch, (N, C, H, W), with a little more or less contrast and brightness."""
    shade = (torch.rand(2, len(images), 1, 1, 1) * 2 - 1) * 0.3
    return images * (1 + shade[0]) + shade[1]
