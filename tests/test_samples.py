"""A split is stored as one array per input, and named by its content."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from edgebuild.cache import Cache
from edgebuild.samples import StoredSamples, store_split
from edgebuild.vocabulary.errors import InvalidWorkload

EXAMPLE = (torch.zeros(1, 3),)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path)


@contextmanager
def fresh_cache() -> Iterator[Cache]:
    """One a case: hypothesis runs many cases in one test."""
    with tempfile.TemporaryDirectory() as folder:
        yield Cache(Path(folder))


def batches(inputs: np.ndarray, labels: np.ndarray | None, cuts: list[int]) -> list[Any]:
    """The rows as pairs, cut into batches at these rows."""
    edges = sorted({0, len(inputs), *(cut for cut in cuts if cut < len(inputs))})
    return [
        (torch.from_numpy(inputs[low:high]), None if labels is None else labels[low:high])
        for low, high in pairwise(edges)
    ]


def rows_of(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(count, 3)).astype(np.float32)
    return inputs, generator.integers(0, 9, count)


def digest(split: Any, cache: Cache) -> str:
    return store_split(split, EXAMPLE, "test", cache).digest


# ---- the round trip


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float16, torch.float64, torch.int64, torch.int8, torch.uint8, torch.bool],
)
@pytest.mark.parametrize("shape", [(), (3,), (3, 4, 5), (0,)])
def test_shapes_and_types_come_back(
    dtype: torch.dtype, shape: tuple[int, ...], cache: Cache
) -> None:
    batch = torch.arange(4 * int(np.prod(shape))).reshape(4, *shape).to(dtype)
    stored = store_split([(batch, None)], (batch[:1],), "test", cache)
    (array,) = stored.inputs()
    assert array.dtype == batch.numpy().dtype
    assert np.array_equal(array, batch.numpy())
    assert stored.count == 4


def test_every_input_has_its_own_array_in_order(cache: Cache) -> None:
    count = 12
    example = tuple(torch.full((1, width + 1), float(width)) for width in range(count))
    stored = store_split([(example, None)], example, "test", cache)
    assert [array.shape for array in stored.inputs()] == [(1, w + 1) for w in range(count)]
    assert [array.flat[0] for array in stored.inputs()] == list(range(count))


def test_rows_have_a_batch_of_one(cache: Cache) -> None:
    inputs, _ = rows_of(5)
    stored = store_split(batches(inputs, None, [2]), EXAMPLE, "test", cache)
    rows = [row[0] for row in stored.rows()]
    assert all(row.shape == (1, 3) and row.flags.c_contiguous for row in rows)
    assert np.array_equal(np.concatenate(rows), inputs)


@pytest.mark.parametrize(("limit", "expected"), [(None, 5), (2, 2), (5, 5), (9, 5)])
def test_rows_can_be_limited(limit: int | None, expected: int, cache: Cache) -> None:
    inputs, _ = rows_of(5)
    stored = store_split(batches(inputs, None, []), EXAMPLE, "test", cache)
    assert len(list(stored.rows(limit))) == expected


def test_a_limit_of_no_rows_gives_none(cache: Cache) -> None:
    stored = store_split(batches(rows_of(5)[0], None, []), EXAMPLE, "test", cache)
    assert list(stored.rows(0)) == []


@pytest.mark.parametrize(
    "label", [7, 0.5, True, np.float32(2), torch.tensor(3), torch.tensor([3]), [4], "cat", b"cat"]
)
def test_a_label_may_be_a_bare_value(label: Any, cache: Cache) -> None:
    stored = store_split([(torch.zeros(1, 3), label)] * 2, EXAMPLE, "test", cache)
    labels = stored.labels()
    assert labels is not None
    assert labels.shape == (2,)
    assert labels.dtype == np.asarray(label).dtype
    assert (labels == np.asarray(label).reshape(-1)[0]).all()


def test_a_label_may_be_an_array_a_sample(cache: Cache) -> None:
    split = [(torch.zeros(1, 3), np.full((1, 2, 2), row)) for row in range(4)]
    labels = store_split(split, EXAMPLE, "test", cache).labels()
    assert labels is not None
    assert labels[:, 0, 0].tolist() == [0, 1, 2, 3]


def test_a_split_without_labels_has_none(cache: Cache) -> None:
    assert store_split([(torch.zeros(1, 3), None)], EXAMPLE, "test", cache).labels() is None


def test_labels_may_be_written_to_and_the_store_keeps_its_own(cache: Cache) -> None:
    images, labels = rows_of(6)
    stored = store_split(batches(images, labels, [4]), EXAMPLE, "test", cache)
    _, label = stored[0]
    for each in (stored.labels(), label):
        assert each is not None
        # Of others torch.from_numpy, as score functions have it, warns.
        assert each.flags.writeable
        each += 1
    assert np.array_equal(stored.labels(), labels)


def test_what_was_stored_can_be_opened_again(cache: Cache) -> None:
    inputs, labels = rows_of(5)
    stored = store_split(batches(inputs, labels, [1]), EXAMPLE, "test", cache)
    assert StoredSamples.open(stored.folder) == stored


def test_only_plain_files_are_stored(cache: Cache) -> None:
    inputs, labels = rows_of(5)
    stored = store_split(batches(inputs, labels, [1]), EXAMPLE, "test", cache)
    assert sorted(file.name for file in stored.folder.iterdir()) == ["input-0.npy", "labels.npy"]
    assert np.array_equal(np.load(stored.folder / "input-0.npy", allow_pickle=False), inputs)


def test_tensors_may_need_gradients_and_have_any_strides(cache: Cache) -> None:
    batch = torch.randn(3, 2).T.requires_grad_()
    stored = store_split([(batch, None)], EXAMPLE, "test", cache)
    assert np.array_equal(stored.inputs()[0], batch.detach().numpy())


class Indexable:
    """Samples by number, and no iterator."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int, /) -> Any:
        return torch.full((1, 3), float(index)), index


class Reiterable:
    """A generator that can be started again, and no length."""

    def __iter__(self) -> Iterator[Any]:
        return (Indexable()[index] for index in range(3))


def test_any_collection_that_can_be_read_twice_will_do(cache: Cache) -> None:
    rows = torch.arange(3.0)[:, None, None].expand(3, 1, 3)
    dataset = TensorDataset(rows, torch.arange(3))
    splits = [Indexable(), Reiterable(), list(Reiterable()), tuple(Reiterable()), dataset]
    assert len({digest(split, cache) for split in splits}) == 1


# ---- laws


CUTS = st.lists(st.integers(1, 11), max_size=5)


@given(count=st.integers(1, 12), seed=st.integers(0, 99), cuts=CUTS, labeled=st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_joined_rows_are_the_inputs_whatever_the_batches(
    count: int, seed: int, cuts: list[int], labeled: bool
) -> None:
    inputs, numbers = rows_of(count, seed)
    labels = numbers if labeled else None
    with fresh_cache() as cache:
        stored = store_split(batches(inputs, labels, cuts), EXAMPLE, "test", cache)
        assert np.array_equal(np.concatenate([row[0] for row in stored.rows()]), inputs)
        assert np.array_equal(stored.inputs()[0], inputs)
        found = stored.labels()
        assert found is None if labels is None else np.array_equal(found, labels)  # type: ignore[arg-type]
        assert stored.count == count


@given(count=st.integers(1, 12), seed=st.integers(0, 99), first=CUTS, second=CUTS)
@settings(max_examples=40, deadline=None)
def test_the_digest_does_not_depend_on_the_batches(
    count: int, seed: int, first: list[int], second: list[int]
) -> None:
    inputs, labels = rows_of(count, seed)
    with fresh_cache() as one, fresh_cache() as other:
        assert digest(batches(inputs, labels, first), one) == digest(
            batches(inputs, labels, second), other
        )


@given(
    count=st.integers(2, 8), seed=st.integers(0, 99), row=st.integers(0, 7), by=st.integers(1, 5)
)
@settings(max_examples=40, deadline=None)
def test_the_digest_depends_on_content_labels_and_order(
    count: int, seed: int, row: int, by: int
) -> None:
    inputs, labels = rows_of(count, seed)
    changed, relabeled = inputs.copy(), labels.copy()
    changed[row % count, by % 3] += 1
    relabeled[row % count] += by
    variants: list[tuple[np.ndarray, np.ndarray | None]] = [
        (inputs, labels),
        (inputs, None),
        (changed, labels),
        (inputs, relabeled),
        (inputs, labels.astype(np.int32)),
        (np.roll(inputs, 1, axis=0), np.roll(labels, 1)),
        (inputs[:-1], labels[:-1]),
    ]
    with fresh_cache() as cache:
        found = [digest(batches(some, names, []), cache) for some, names in variants]
    assert len(set(found)) == len(variants)


def test_the_digest_tells_shapes_and_inputs_apart(cache: Cache) -> None:
    def of(*tensors: torch.Tensor) -> str:
        return store_split([(tensors, None)], tensors, "test", cache).digest

    zeros = torch.zeros(1, 4)
    names = [
        of(zeros),
        of(zeros.reshape(1, 2, 2)),
        of(zeros, zeros),
        of(zeros.to(torch.int32)),
        of(zeros + 1, zeros),
        of(zeros, zeros + 1),
    ]
    assert len(set(names)) == len(names)


# ---- what is refused


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        (torch.zeros(1, 3), "test sample 1 is of type Tensor: give a pair (inputs, label)"),
        ((torch.zeros(1, 3), 0, 0), "test sample 1 is of type tuple: give a pair (inputs, label)"),
        ((torch.zeros(3), 0), "input 0 has the shape (3,), the example (1, 3)"),
        ((torch.tensor(0.0), 0), "input 0 has the shape (), the example (1, 3)"),
        ((torch.zeros(1, 4), 0), "input 0 has the shape (1, 4), the example (1, 3)"),
        ((torch.zeros(1, 3).int(), 0), "input 0 is int32, the example float32"),
        ((torch.full((1, 3), torch.inf), 0), "input 0 holds NaN or infinite values"),
        ((torch.zeros(2, 3), [0]), "test sample 1 has 1 labels for 2 inputs"),
        ((torch.zeros(1, 3), None), "the test split has 1 labels for 2 samples"),
        ((torch.zeros(1, 3), [0.5]), "labels changes from int64 () to float64 ()"),
    ],
)
def test_a_defective_sample_is_refused(sample: Any, said: str, cache: Cache) -> None:
    with pytest.raises(InvalidWorkload) as caught:
        store_split([(torch.zeros(1, 3), 0), sample], EXAMPLE, "test", cache)
    assert said in str(caught.value)
    assert list((cache.root / "samples").iterdir()) == []


def test_inputs_of_different_batch_sizes_are_refused(cache: Cache) -> None:
    example = (torch.zeros(1, 3), torch.zeros(1, 2))
    sample = ((torch.zeros(2, 3), torch.zeros(1, 2)), None)
    with pytest.raises(InvalidWorkload, match="test sample 0 has inputs of different batch sizes"):
        store_split([sample], example, "test", cache)


@pytest.mark.parametrize("split", [[], (), [(torch.zeros(0, 3), None)], TensorDataset()])
def test_a_split_without_samples_is_refused(split: Any, cache: Cache) -> None:
    if isinstance(split, TensorDataset):
        split.tensors = (torch.zeros(0, 1, 3), torch.zeros(0))
    with pytest.raises(InvalidWorkload, match="the test split is empty"):
        store_split(split, EXAMPLE, "test", cache)


@pytest.mark.parametrize("split", [iter([]), (row for row in range(3)), None, 7])
def test_what_cannot_be_read_twice_is_refused(split: Any, cache: Cache) -> None:
    with pytest.raises(InvalidWorkload, match="give a list or a Dataset"):
        store_split(split, EXAMPLE, "test", cache)


class FailsInTheMiddle(Indexable):
    """A Dataset whose second file is missing."""

    def __getitem__(self, index: int, /) -> Any:
        if index == 1:
            raise FileNotFoundError("image-1.png")
        return super().__getitem__(index)


def test_a_dataset_that_fails_leaves_nothing_behind(cache: Cache) -> None:
    with pytest.raises(Exception, match=r"image-1\.png"):
        store_split(FailsInTheMiddle(), EXAMPLE, "test", cache)
    assert list((cache.root / "samples").iterdir()) == []


def test_a_dataset_that_fails_is_told_as_the_users(cache: Cache) -> None:
    with pytest.raises(InvalidWorkload, match="test sample 1"):
        store_split(FailsInTheMiddle(), EXAMPLE, "test", cache)


@pytest.mark.parametrize("label", [{"boxes": 1}, object(), [None]])
def test_a_label_that_is_no_array_is_refused(label: Any, cache: Cache) -> None:
    with pytest.raises(InvalidWorkload, match="test sample 0"):
        store_split([(torch.zeros(1, 3), label)], EXAMPLE, "test", cache)


def test_a_ragged_label_is_refused(cache: Cache) -> None:
    with pytest.raises(InvalidWorkload, match="test sample 0"):
        store_split([(torch.zeros(2, 3), [[1, 2], [3]])], EXAMPLE, "test", cache)


def test_a_sample_in_a_format_without_arrays_is_refused(cache: Cache) -> None:
    with pytest.raises(InvalidWorkload, match="test sample 0, input 0"):
        store_split([(torch.zeros(1, 3).bfloat16(), None)], EXAMPLE, "test", cache)


def test_labels_with_fields_are_refused(cache: Cache) -> None:
    kind = np.dtype([(f"coordinate_{axis}", "<f4") for axis in range(8)])
    with pytest.raises(InvalidWorkload, match="give numbers"):
        store_split([(torch.zeros(1, 3), np.ones((1,), kind))], EXAMPLE, "test", cache)
