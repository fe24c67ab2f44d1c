"""One small workload, and the bundle that is built of it, for all tests that need a whole one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgebuild import Workload, build
from edgebuild.bundles.manifest import Bundle
from edgebuild.cache import Cache
from edgebuild.inputs.target_file import load_target
from edgebuild.search import measure, prove
from edgebuild.search.case import Case, open_case
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.silence import Silence
from edgebuild.vocabulary.target import Target

Pair = tuple[Tensor, None]
TARGET = "robot-raspberry-pi-5"
PRECISIONS = (Precision.FP32, Precision.INT8_STATIC)


def network() -> nn.Sequential:
    """Three convolutions and a linear layer over images of 8 x 8."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 4),
        ).eval()


def images(count: int, seed: int) -> list[Pair]:
    drawn = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return [(image, None) for image in torch.split(drawn, 1)]


def workload() -> Workload:
    return Workload(
        name="small",
        network=network(),
        example=(torch.zeros(1, 1, 8, 8),),
        calibration=images(16, 0),
        validation=images(24, 1),
        test=images(24, 2),
        notices={"Noise": "CC0-1.0"},
    )


def workload_of(
    given: nn.Module, example: Tensor, calibration: Sequence[Tensor], split: Sequence[Tensor]
) -> Workload:
    """Any network without labels; the test split is the validation split, doubled."""
    return Workload(
        name="a test's",
        network=given.eval(),
        example=(example,),
        calibration=[(sample, None) for sample in calibration],
        validation=[(sample, None) for sample in split],
        test=[(2 * sample, None) for sample in split],
    )


def case_of(given: Workload, cache: Cache, target: Target | str = TARGET) -> Case:
    profile = load_target(target) if isinstance(target, str) else target
    return open_case(given, profile, profile.budget, cache, Silence())


@functools.cache
def bundle(folder: Path) -> Bundle:
    """The small workload's bundle, built once a process on short clocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "SEARCHING", replace(measure.SEARCHING, seconds=0.0))
        patch.setattr(prove, "PROVING", replace(prove.PROVING, seconds=0.0))
        return build(
            workload(), TARGET, out=folder / "small", formats=("onnx",), precisions=PRECISIONS
        )


def failing(error: BaseException) -> Callable[..., None]:
    """A function that fails whatever it is given."""

    def fail(*_: object, **__: object) -> None:
        raise error

    return fail
