"""The pneumonia workload: whole on tiny made-up X-rays, and the splits of the real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pneumonia
import pytest
import torch
from data_files import data_file
from pneumonia import NAME

from edgebuild import Workload
from edgebuild.inputs.workload_check import check_workload
from edgebuild.inputs.workload_file import load_workload
from edgebuild.vocabulary.errors import InvalidWorkload

FILE = Path(pneumonia.__file__)


def write_xrays(folder: Path) -> dict[str, np.ndarray]:
    """Bright images are ill; the first of validation stands in training too."""
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 256), ("val", 10), ("test", 20)):
        labels = np.arange(count) % 2
        images = generator.integers(0, 100, (count, 28, 28)) + 100 * labels[:, None, None]
        arrays[f"{split}_images"] = images.astype(np.uint8)
        arrays[f"{split}_labels"] = labels[:, None].astype(np.uint8)
    arrays["val_images"][0] = arrays["train_images"][4]
    folder.mkdir(exist_ok=True)
    np.savez(folder / NAME, **arrays)
    return arrays


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    """The whole workload, trained on what was made up."""
    folder = tmp_path_factory.mktemp("data")
    write_xrays(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEBUILD_DATA", str(folder))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr(pneumonia, "EPOCHS", 10)
        return pneumonia.workload()


def test_it_is_a_sound_workload_that_learns(workload: Workload) -> None:
    check_workload(workload)
    split = workload.test
    with torch.no_grad():
        outputs = torch.cat([workload.network(split[row][0]) for row in range(len(split))])  # type: ignore[arg-type, index]
    labels = np.concatenate([split[row][1] for row in range(len(split))])  # type: ignore[arg-type, index]
    assert labels.shape == (20,)
    assert workload.score is not None
    assert workload.score(outputs.numpy(), labels) > 0.9


def test_an_image_of_training_is_left_out_of_validation(workload: Workload) -> None:
    splits = (workload.calibration, workload.validation, workload.test)
    assert [len(split) for split in splits] == [256, 9, 20]  # type: ignore[arg-type]


def test_the_data_are_found_where_their_package_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = write_xrays(tmp_path / ".medmnist")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("EDGEBUILD_DATA", raising=False)
    monkeypatch.setattr(pneumonia, "prepared", lambda *_: pneumonia.network().state_dict())
    image, label = pneumonia.workload().test[3]  # type: ignore[index]
    assert np.array_equal((image[0, 0] + 1) * 127.5, arrays["test_images"][3])
    assert label.tolist() == [1]


def test_without_its_data_it_says_where_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("EDGEBUILD_DATA", raising=False)
    said = rf"needs {NAME} \(looked for: {tmp_path}/.medmnist/{NAME}\): get it from MedMNIST v2"
    with pytest.raises(InvalidWorkload, match=said):
        load_workload(str(FILE))


def test_no_real_image_of_validation_is_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        data_file(NAME, pneumonia.ORIGIN, [Path.home() / ".medmnist" / NAME])
    except FileNotFoundError as error:
        pytest.skip(str(error))
    # Only the splits are of interest, so nothing is trained.
    monkeypatch.setattr(pneumonia, "prepared", lambda *_: pneumonia.network().state_dict())
    workload = pneumonia.workload()
    training, validation, test = (
        {image.numpy().tobytes() for image in split.images}  # type: ignore[union-attr]
        for split in (workload.calibration, workload.validation, workload.test)
    )
    assert not training & validation
    assert not test & (training | validation)
