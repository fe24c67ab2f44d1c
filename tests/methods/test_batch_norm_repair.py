"""Statistics of batch normalizations are taken again where a network was changed."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from edgebuild import Workload
from edgebuild.methods._batch_norm_repair import FEWEST_FOR_STATISTICS, TOGETHER, repaired


class OneByOne(nn.Sequential):
    """Takes a single sample at a time."""

    def forward(self, x: Tensor) -> Tensor:
        assert len(x) == 1
        for layer in self:
            x = layer(x)
        return x


def taught(kind: type[nn.Sequential] = nn.Sequential) -> nn.Sequential:
    """A network whose statistics are of its data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = kind(
            *(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16, momentum=None), nn.ReLU()),
            *(nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(128, 5)),
        )
        nn.Sequential(*made).train()(images())
    return made.eval()


def images(count: int = 96) -> Tensor:
    """Sorted: the later, the brighter."""
    generator = torch.Generator().manual_seed(1)
    bright = torch.linspace(0, 4, count).reshape(-1, 1, 1, 1)
    return bright + torch.randn(count, 3, 8, 8, generator=generator)


def workload_of(network: nn.Module, count: int = 96) -> Workload:
    samples = [(image[None], None) for image in images(count)]
    return Workload("images", network, (samples[0][0],), samples, samples, samples[:1])


def damaged(network: nn.Sequential) -> nn.Sequential:
    """Its channels are fainter, and not all alike."""
    changed = copy.deepcopy(network)
    with torch.no_grad():
        first, second = (layer for layer in changed if isinstance(layer, nn.Conv2d))
        first.weight[:, ::2] *= 0.5
        second.weight *= 0.7
    return changed


@torch.no_grad()
def test_a_changed_network_answers_more_like_the_whole_one() -> None:
    whole = taught()
    changed = damaged(whole)
    was = copy.deepcopy(changed.state_dict())
    found = repaired(changed, workload_of(whole))
    wanted = whole(images())
    lost, left = ((one(images()) - wanted).square().mean() for one in (changed, found))
    assert left < 0.9 * lost
    assert not found.training
    assert all(torch.equal(value, was[name]) for name, value in changed.state_dict().items())
    # Weights stay, and so does how fast statistics would follow.
    assert all(
        torch.equal(a, b) for a, b in zip(found.parameters(), changed.parameters(), strict=True)
    )
    assert found[1].momentum is None  # type: ignore[index]


@torch.no_grad()
def test_statistics_are_of_what_comes_through_the_changed_network() -> None:
    whole = taught()
    changed = damaged(whole)
    found = repaired(changed, workload_of(whole, TOGETHER))
    other = copy.deepcopy(changed).train()
    for place in (1, 4):
        other[place].reset_running_stats()  # type: ignore[operator]
    other(images(TOGETHER))
    for place in (1, 4):
        for name, value in other[place].state_dict().items():
            given = found[place].state_dict()[name]  # type: ignore[index]
            if name != "num_batches_tracked":
                assert given == pytest.approx(value, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("mark", ["few", "alone", "farther", "none"])
def test_a_network_stays_the_very_same(mark: str) -> None:
    whole = taught(OneByOne if mark == "alone" else nn.Sequential)
    changed: nn.Module = damaged(whole)
    workload = workload_of(whole)
    if mark == "few":
        workload = replace(workload, calibration=workload.calibration[: FEWEST_FOR_STATISTICS - 1])  # type: ignore[index]
    if mark == "farther":
        # Nothing was changed, and other statistics can only be worse.
        changed = copy.deepcopy(whole)
    if mark == "none":
        changed = nn.Sequential(nn.Conv2d(3, 5, 8), nn.Flatten())
    assert repaired(changed, workload) is changed
