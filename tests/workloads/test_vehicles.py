"""The vehicles workload: whole on tiny made-up crops, and on the real ones where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import training
import vehicles
from data_files import data_file

from edgebuild import Workload
from edgebuild.inputs.workload_check import check_workload
from edgebuild.inputs.workload_file import load_workload
from edgebuild.vocabulary.errors import InvalidWorkload

FILE = Path(vehicles.__file__)


@pytest.fixture(scope="module")
def made_up() -> dict[str, np.ndarray]:
    """Bright crops are vehicles; in turns with what is none."""
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in (("tr", 1000), ("te", 20)):
        labels = np.arange(count) % 2
        noise = generator.integers(0, 100, (count, 32, 32, 3))
        arrays[f"x{split}"] = (noise + 100 * labels[:, None, None, None]).astype(np.uint8)
        arrays[f"y{split}"] = labels
    return arrays


@pytest.fixture(scope="module")
def workload(made_up: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Workload:
    """The whole workload, trained on what was made up."""
    folder = tmp_path_factory.mktemp("data")
    np.savez(folder / "vehicles_32.npz", **made_up)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEBUILD_DATA", str(folder))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr(vehicles, "EPOCHS", 2)
        return vehicles.workload()


def test_it_is_a_sound_workload_that_learns(
    workload: Workload, made_up: dict[str, np.ndarray]
) -> None:
    check_workload(workload)
    with torch.no_grad():
        outputs = torch.cat([workload.network(inputs) for inputs, _ in workload.test])
    assert workload.score is not None
    labels = np.concatenate([label for _, label in workload.test])
    assert workload.score(outputs.numpy(), labels) > 0.9


def test_every_crop_is_in_one_split_and_looks_as_it_did(
    workload: Workload, made_up: dict[str, np.ndarray]
) -> None:
    assert len(workload.calibration) == 1000  # type: ignore[arg-type]
    assert len(workload.validation) == len(workload.test) == 10  # type: ignore[arg-type]
    # Of ten crops of each class, in turns, every second block of one is for test.
    for split, index, name, row in (
        *(("calibration", 600, "tr", 600), ("validation", 1, "te", 3)),
        ("test", 2, "te", 4),
    ):
        inputs, label = getattr(workload, split)[index]
        crop = (inputs[0].permute(1, 2, 0).numpy() + 1) * 127.5
        assert np.array_equal(crop.round(), made_up[f"x{name}"][row])
        assert label.tolist() == [made_up[f"y{name}"][row]]


def test_training_gives_the_same_weights_again() -> None:
    images = torch.arange(3 * 32 * 32 * 8).reshape(8, 3, 32, 32) % 256
    labels = torch.arange(8) % 2
    first, second = (
        training.trained(vehicles.network, images, labels, vehicles._augmented, epochs=1)
        for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_network_has_the_size_it_says() -> None:
    assert sum(weight.numel() for weight in vehicles.network().parameters()) == 278_434


def test_without_its_data_it_says_where_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEBUILD_DATA", str(tmp_path))
    said = rf"vehicles.py:\d+: FileNotFoundError: needs vehicles_32.npz \(looked for: {tmp_path}"
    with pytest.raises(InvalidWorkload, match=said):
        load_workload(str(FILE))
    monkeypatch.delenv("EDGEBUILD_DATA")
    with pytest.raises(InvalidWorkload, match="looked for: nowhere.*set EDGEBUILD_DATA"):
        load_workload(str(FILE))


def test_a_crop_that_stands_in_two_splits_is_kept_in_one(tmp_path: Path) -> None:
    crops = torch.arange(1000)[:, None].repeat(1, 4)
    held_out = torch.arange(5000, 5040)[:, None].repeat(1, 4)
    held_out[0] = 20  # one of training that is in test too
    held_out[5] = 890  # and one that is in validation
    held_out[7] = 5008  # one of validation that is in test too
    labels = torch.arange(40) // 20
    learning, validating, tested = vehicles._split(crops, held_out, labels)
    # Blocks are of two crops of a class here.
    assert tested.tolist()[:4] == [0, 1, 4, 5]
    assert validating.tolist()[:4] == [2, 3, 6, 10]
    assert {20, 890}.isdisjoint(learning.tolist())
    assert (len(learning), len(validating), len(tested)) == (998, 19, 20)


def test_no_real_crop_is_in_two_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        data_file("vehicles_32.npz", vehicles.ORIGIN)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    # Only the splits are of interest, so nothing is trained.
    monkeypatch.setattr(vehicles, "prepared", lambda *_: vehicles.network().state_dict())
    workload = vehicles.workload()
    splits = [workload.calibration, workload.validation, workload.test]
    crops = [{crop.numpy().tobytes() for crop in split.images} for split in splits]  # type: ignore[union-attr]
    assert sum(map(len, crops)) == len(set.union(*crops))
    assert min(map(len, splits[1:])) > 1700  # type: ignore[arg-type]
