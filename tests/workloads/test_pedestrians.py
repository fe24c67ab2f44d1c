"""The pedestrians workload: its detector is the published one, its boxes and score are right."""

from __future__ import annotations

import boxes
import numpy as np
import pedestrians
import pytest
import ssdlite
import torch
from boxes import anchors, detected, overlaps, recall
from data_files import package_file
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tf_graph import float_constants

from edgebuild import Workload
from edgebuild.inputs.workload_check import check_workload

# What TensorFlow 2.21 gives for the whole graph: the boxes and probabilities of people.
IN_BUS = (
    ((0.3688, 0.0508, 0.8483, 0.2733), 0.99916),
    ((0.3728, 0.2659, 0.8040, 0.4328), 0.94064),
)


@pytest.fixture(scope="module")
def network() -> ssdlite.SsdLite:
    try:
        file = package_file(pedestrians.PACKAGE, pedestrians.GRAPH)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    return ssdlite.pretrained(float_constants(file))


@pytest.fixture(scope="module")
def workload(network: ssdlite.SsdLite, tmp_path_factory: pytest.TempPathFactory) -> Workload:
    """The whole workload, with two views of every photograph."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        for name, photographs in pedestrians.SPLITS.items():
            fewer = tuple(photograph._replace(views=2) for photograph in photographs)
            patch.setitem(pedestrians.SPLITS, name, fewer)
        try:
            return pedestrians.workload()
        except ModuleNotFoundError as error:
            pytest.skip(str(error))


def test_the_network_finds_what_tensorflow_finds(network: ssdlite.SsdLite) -> None:
    try:
        file = package_file("ultralytics", "ultralytics/assets/bus.jpg")
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    with Image.open(file) as opened:
        pixels = np.array(opened.convert("RGB").resize((300, 300)))
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        encodings, logits = (output[0].numpy() for output in network(image))
    assert encodings.shape == (1917, 4)
    assert logits.shape == (1917, 2)
    found = detected(encodings, logits, anchors(300), 0.3)
    assert found == pytest.approx(np.array([box for box, _ in IN_BUS]), abs=1e-3)
    surest = torch.from_numpy(logits[:, 1]).sigmoid().max()
    assert surest == pytest.approx(IN_BUS[0][1], abs=1e-4)


def test_it_is_a_sound_workload_that_finds_all_its_own_boxes(workload: Workload) -> None:
    check_workload(workload)
    split = workload.test
    samples = [split[row] for row in range(4)]  # type: ignore[index]
    with torch.no_grad():
        outputs = [workload.network(inputs) for inputs, _ in samples]
    joined = tuple(torch.cat(column).numpy() for column in zip(*outputs, strict=True))
    labels = np.concatenate([label for _, label in samples])
    assert workload.score is not None
    assert workload.score(joined, labels) == 1
    unsure = (joined[0], joined[1] - 20)
    assert workload.score(unsure, labels) == 0


def test_no_photograph_is_in_two_splits() -> None:
    files = [photograph[:2] for split in pedestrians.SPLITS.values() for photograph in split]
    assert len(set(files)) == len(files)


def test_a_view_is_a_part_of_its_photograph() -> None:
    image = torch.arange(400.0).repeat(3, 600, 1) / 4
    # Half as high and wide, from the middle; not mirrored; as light as before.
    view = pedestrians._view(image, [0, 0, 0.5, 0.5, 1, 0.5, 0.5])
    assert view.shape == (3, pedestrians.SIZE, pedestrians.SIZE)
    assert view[0, 0, 0] == 25
    assert view[0, 0, -1] == 75
    mirrored = pedestrians._view(image, [0, 0, 0.5, 0.5, 0, 0.5, 0.5])
    assert torch.equal(mirrored, view.flip(-1))


# ---- boxes


def test_an_anchor_without_shift_is_its_own_box() -> None:
    decoded = boxes.decoded(np.zeros((1917, 4), np.float32), anchors(300))
    # The fourth map's middle place: square, and three times as wide as high.
    middle = 6 * (10 * 10 + 5 * 5) + 3 * 19 * 19 + 6 * 4
    assert decoded[middle] == pytest.approx(0.5 + 0.325 * np.array([-1, -1, 1, 1]))
    height, width = 0.65 / 3**0.5, 0.65 * 3**0.5
    expected = np.clip(0.5 + np.array([-height, -width, height, width]) / 2, 0, 1)
    assert decoded[middle + 3] == pytest.approx(expected)


def test_of_boxes_that_overlap_much_only_the_surest_stays() -> None:
    logits = np.full((1917, 2), -9.0, np.float32)
    encodings = np.zeros((1917, 4), np.float32)
    last = 1916  # nearly the whole image
    logits[[5, last, last - 5], 1] = [1, 2, 3]
    found = detected(encodings, logits, anchors(300), 0.5)
    assert found == pytest.approx(boxes.decoded(encodings, anchors(300))[[last - 5, 5]])


def test_a_found_box_counts_once() -> None:
    twice = np.array([[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.52]], np.float32)
    nothing = np.zeros((0, 4), np.float32)
    assert recall([twice], [twice], 0.5) == 1
    assert recall([twice[:1]], [twice], 0.5) == 0.5
    assert recall([nothing, twice], [twice, nothing], 0.5) == 0
    assert recall([twice + 0.3], [twice[:1]], 0.5) == 0


@given(st.lists(st.floats(0, 1, width=32), min_size=8, max_size=8))
def test_overlap_is_a_share_and_symmetric(corners: list[float]) -> None:
    near, far = np.sort(np.array(corners, np.float32).reshape(2, 4), axis=0)
    first = np.concatenate([near[:2], far[:2]])[None]
    second = np.concatenate([near[2:], far[2:]])[None]
    shares = overlaps(first, second)
    assert 0 <= shares[0, 0] <= 1 + 1e-6
    assert shares == overlaps(second, first).T
    area = float(np.prod(first[0, 2:] - first[0, :2]))
    assert overlaps(first, first)[0, 0] == pytest.approx(float(area > 0))
