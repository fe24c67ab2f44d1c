"""Statistics of batch normalizations: referred to other samples, with the same answers."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgebuild.cache import Cache
from edgebuild.methods._batch_norm_statistics import referred, statistics_of
from edgebuild.samples import StoredSamples, store_split


class Bold(nn.BatchNorm2d):
    """Does more than normalize."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def network(norm: nn.Module) -> nn.Module:
    """With statistics that are of no data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = nn.Sequential(
            *(nn.Conv2d(3, 6, 3), norm, nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)),
            *(nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5)),
        )
        for module in made.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                for values in module.state_dict().values():
                    if values.is_floating_point():
                        values.uniform_(0.2, 3)
    return made.eval()


@pytest.fixture
def samples(tmp_path: Path) -> StoredSamples:
    generator = torch.Generator().manual_seed(1)
    images = [(4 + torch.randn(1, 3, 8, 8, generator=generator), None) for _ in range(40)]
    return store_split(images, (images[0][0],), "calibration", Cache(tmp_path))


def batch(samples: StoredSamples) -> Tensor:
    return torch.cat([torch.tensor(image) for (image,) in samples.rows()])


@torch.no_grad()
def test_a_batch_that_is_normalized_by_itself_is_answered_as_before(
    samples: StoredSamples,
) -> None:
    given = network(nn.BatchNorm2d(6))
    images = batch(samples)
    wanted = given(images)
    assert (copy.deepcopy(given).train()(images) - wanted).abs().max() > 0.5
    was = copy.deepcopy(given.state_dict())
    changed = referred(given, statistics_of(given, samples))
    assert torch.allclose(changed(images), wanted, atol=1e-4)
    # The variance of a batch is taken of one sample less.
    assert torch.allclose(changed.train()(images), wanted, atol=1e-3)
    assert all(torch.equal(value, was[name]) for name, value in given.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(6, affine=False), nn.BatchNorm2d(6, track_running_stats=False), Bold(6)],
)
def test_what_cannot_make_up_for_others_keeps_its_statistics(
    norm: nn.BatchNorm2d, samples: StoredSamples
) -> None:
    given = network(norm)
    images, was = batch(samples), copy.deepcopy(norm.state_dict())
    wanted = given(images)
    changed = referred(given, statistics_of(given, samples))
    assert torch.allclose(changed(images), wanted, atol=1e-4)
    for name, value in changed[1].state_dict().items():
        assert torch.equal(value, was[name])


def test_a_network_without_batch_normalizations_stays_the_very_same(
    samples: StoredSamples,
) -> None:
    given = nn.Sequential(nn.Conv2d(3, 3, 8), nn.Flatten(), nn.LayerNorm(3))
    assert referred(given, statistics_of(given, samples)) is given
