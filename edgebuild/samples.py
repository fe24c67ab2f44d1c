"""Stores a split as plain .npy files, so that any process on any device can read it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from edgebuild.cache import Cache
from edgebuild.vocabulary.errors import EdgebuildError, InvalidWorkload
from edgebuild.vocabulary.workload import Split


@dataclass(frozen=True)
class StoredSamples:
    """A folder with `input-0.npy` … and `labels.npy`, all joined along the batch.

    `digest` names the content, labels included.
    """

    folder: Path
    digest: str
    count: int

    @classmethod
    def open(cls, folder: Path) -> StoredSamples:
        """Opens what `store_split` wrote."""
        count = len(np.load(folder / "input-0.npy", mmap_mode="r"))
        return cls(folder, folder.name, count)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[tuple[torch.Tensor, ...], np.ndarray | None]:
        """One sample as a workload's split gives it: inputs with batch 1, and its label."""
        if not 0 <= number < self.count:
            raise IndexError(number)
        inputs = tuple(torch.tensor(array[number : number + 1]) for array in self.inputs())
        labels = self.labels()
        return inputs, None if labels is None else labels[number : number + 1]

    def inputs(self) -> list[np.ndarray]:
        """One array an input, (count, …), mapped rather than read."""
        files = sorted(self.folder.glob("input-*.npy"), key=lambda file: int(file.stem[6:]))
        return [np.load(file, mmap_mode="r") for file in files]

    def labels(self) -> np.ndarray | None:
        """The labels, (count, …), or None where the split has none.

        Mapped, and for a score function to write to as it likes: the file does not change. Torch
        warns of arrays that cannot be written to.
        """
        file = self.folder / "labels.npy"
        return np.load(file, mmap_mode="c") if file.exists() else None

    def numbers(self, limit: int | None = None) -> list[int]:
        """All rows, or so many at even distances: the first ones of a sorted split are alike."""
        taken = self.count if limit is None else min(self.count, limit)
        return [number * self.count // taken for number in range(taken)]

    def rows(self, limit: int | None = None) -> Iterator[tuple[np.ndarray, ...]]:
        """One sample after the other, each input with batch 1; a limit takes them as `numbers`."""
        inputs = self.inputs()
        for row in self.numbers(limit):
            yield tuple(np.ascontiguousarray(array[row : row + 1]) for array in inputs)


def store_split(
    split: Split, example: tuple[torch.Tensor, ...], name: str, cache: Cache
) -> StoredSamples:
    """Writes every sample of a split, a batch at a time, and checks it against the example.

    Raises:
        InvalidWorkload: an empty split, or a sample that is not shaped like the example.
    """
    with cache.adopt("samples") as (scratch, publish), ExitStack() as files:
        paths = [scratch / f"input-{index}.npy" for index in range(len(example))]
        writers = [_ArrayWriter(path, files) for path in paths]
        label_writer = _ArrayWriter(scratch / "labels.npy", files)
        count = 0
        for number, sample in enumerate(_guarded(_samples_of(split, name), name)):
            inputs, label = _checked(sample, example, f"{name} sample {number}")
            for writer, array in zip(writers, inputs, strict=True):
                writer.append(array)
            if label is not None:
                label_writer.append(label)
            count += len(inputs[0])
        if count == 0:
            raise InvalidWorkload(f"the {name} split is empty: it needs at least one sample")
        if label_writer.rows not in (0, count):
            raise InvalidWorkload(
                f"the {name} split has {label_writer.rows} labels for {count} samples: "
                "give every sample a label, or none"
            )
        digests = [writer.close() for writer in (*writers, label_writer)]
        key = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
        return StoredSamples(publish(key), key, count)


def _guarded(samples: Iterator[Any], name: str) -> Iterator[Any]:
    """Whatever the user's own Dataset raises is named by its sample, and no bug of ours."""
    number = 0
    while True:
        try:
            sample = next(samples)
        except StopIteration:
            return
        except EdgebuildError:
            raise
        except Exception as error:
            raise InvalidWorkload(
                f"{name} sample {number} cannot be read: {type(error).__name__}: {error}"
            ) from error
        yield sample
        number += 1


def _samples_of(split: Split, name: str) -> Iterator[Any]:
    if hasattr(split, "__iter__"):
        if iter(split) is split:
            raise InvalidWorkload(
                f"the {name} split can be read only once: give a list or a Dataset, no generator"
            )
        yield from cast(Iterable[Any], split)
    elif hasattr(split, "__getitem__") and hasattr(split, "__len__"):
        yield from (split[index] for index in range(len(split)))
    else:
        raise InvalidWorkload(
            f"the {name} split is of type {type(split).__name__}: "
            "give a list or a Dataset of (inputs, label)"
        )


def _checked(
    sample: Any, example: tuple[torch.Tensor, ...], where: str
) -> tuple[list[np.ndarray], np.ndarray | None]:
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        raise InvalidWorkload(
            f"{where} is of type {type(sample).__name__}: give a pair (inputs, label)"
        )
    inputs, label = sample
    tensors = inputs if isinstance(inputs, tuple | list) else (inputs,)
    if len(tensors) != len(example):
        raise InvalidWorkload(
            f"{where} has {len(tensors)} inputs, the example {len(example)}: they must agree"
        )
    arrays = [
        _checked_input(tensor, like, f"{where}, input {index}")
        for index, (tensor, like) in enumerate(zip(tensors, example, strict=True))
    ]
    batch = len(arrays[0])
    if any(len(array) != batch for array in arrays):
        raise InvalidWorkload(f"{where} has inputs of different batch sizes")
    return arrays, None if label is None else _checked_label(label, batch, where)


def _checked_input(tensor: Any, like: torch.Tensor, where: str) -> np.ndarray:
    array = _as_array(tensor, where) if isinstance(tensor, torch.Tensor) else tensor
    if not isinstance(array, np.ndarray):
        raise InvalidWorkload(f"{where} is of type {type(tensor).__name__}: give a tensor")
    wanted = like.detach().cpu().numpy()
    if array.ndim != wanted.ndim or array.shape[1:] != wanted.shape[1:]:
        raise InvalidWorkload(
            f"{where} has the shape {array.shape}, the example {wanted.shape}: "
            "all but the batch must agree (the batch dimension comes first)"
        )
    if array.dtype != wanted.dtype:
        raise InvalidWorkload(f"{where} is {array.dtype}, the example {wanted.dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidWorkload(f"{where} holds NaN or infinite values")
    return array


def _checked_label(label: Any, batch: int, where: str) -> np.ndarray:
    array = np.atleast_1d(_as_array(label, f"{where}, label"))
    if len(array) != batch:
        raise InvalidWorkload(f"{where} has {len(array)} labels for {batch} inputs")
    return array


def _as_array(value: Any, where: str) -> np.ndarray:
    """A plain array of numbers or texts; anything else could not be read back."""
    try:
        tensor = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
        array = np.asarray(tensor)
    except (TypeError, ValueError) as error:
        raise InvalidWorkload(f"{where} cannot become an array: {error}") from None
    if array.dtype.kind in "OV":
        raise InvalidWorkload(f"{where} holds {array.dtype} values: give numbers")
    return array


class _ArrayWriter:
    """Appends batches to an .npy file of unknown length, in constant memory."""

    # Room for any description of a plain dtype; the format pads headers with spaces.
    HEADER = 256

    def __init__(self, path: Path, files: ExitStack) -> None:
        self.path = path
        self.rows = 0
        self._file = files.enter_context(path.open("wb"))
        self._file.write(b"\0" * self.HEADER)
        self._hash = hashlib.sha256()
        self._row: tuple[np.dtype[Any], tuple[int, ...]] | None = None

    def append(self, batch: np.ndarray) -> None:
        row = (batch.dtype, batch.shape[1:])
        if self._row is None:
            self._row = row
        elif row != self._row:
            raise InvalidWorkload(
                f"{self.path.stem} changes from {self._row[0]} {self._row[1]} to {row[0]} {row[1]} "
                "between samples: arrays that are joined along the batch must agree"
            )
        data = np.ascontiguousarray(batch).tobytes()
        self._hash.update(data)
        self._file.write(data)
        self.rows += len(batch)

    def close(self) -> str:
        """Writes the header, and names the content; removes a file to which nothing was added."""
        if self._row is None:
            self._file.close()
            self.path.unlink()
            return ""
        dtype, shape = self._row
        description = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": (self.rows, *shape),
        }
        self._file.seek(0)
        # NPY format 1.0: magic, version, length of the header, the header padded with spaces.
        text = repr(description).encode().ljust(self.HEADER - 11) + b"\n"
        self._file.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
        self._file.close()
        self._hash.update(text)
        return self._hash.hexdigest()
