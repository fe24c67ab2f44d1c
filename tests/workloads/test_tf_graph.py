"""Constants are read from a frozen TensorFlow graph, written here byte by byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tf_graph import _varint, float_constants

FLOAT, INT32 = 1, 3


def varint(number: int) -> bytes:
    digits = []
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])


def field(number: int, value: int | bytes) -> bytes:
    """A field with a number in it, or with text, numbers or a message as bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def node(name: str, operator: str, shape: tuple[int, ...], values: bytes, dtype: int) -> bytes:
    """A node of a graph; `values` is the part of its tensor that holds the numbers."""
    # A dimension of zero is a default, so it is not written.
    sizes = b"".join(field(2, field(1, size) if size else b"") for size in shape)
    tensor = field(1, dtype) + field(2, sizes) + values
    attribute = field(1, b"value") + field(2, field(8, tensor))
    kind = field(1, b"dtype") + field(2, field(6, dtype))
    body = field(1, name.encode()) + field(2, operator.encode()) + field(3, b"another")
    return field(1, body + field(5, kind) + field(5, attribute))


def floats(*numbers: float) -> bytes:
    return np.array(numbers, "<f4").tobytes()


def read(tmp_path: Path, graph: bytes) -> dict[str, np.ndarray]:
    file = tmp_path / "graph.pb"
    file.write_bytes(graph)
    return dict(float_constants(file))


def test_raw_bytes_packed_numbers_and_a_repeated_one_are_read(tmp_path: Path) -> None:
    # The last field of a graph, its versions, is of no interest.
    found = read(
        tmp_path,
        node("raw", "Const", (2, 3), field(4, floats(1, 2, 3, 4, 5, 6)), FLOAT)
        + node("packed", "Const", (2,), field(5, floats(7, 8)), FLOAT)
        + node("all the same", "Const", (2, 2), field(5, floats(9)), FLOAT)
        + node("scalar", "Const", (), field(5, floats(0.5)), FLOAT)
        + node("zero", "Const", (), b"", FLOAT)
        + node("empty", "Const", (0, 4), field(4, b""), FLOAT)
        + field(4, field(1, 300)),
    )
    assert found["raw"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert found["packed"].tolist() == [7, 8]
    assert found["all the same"].tolist() == [[9, 9], [9, 9]]
    assert found["scalar"].tolist() == 0.5
    assert found["zero"].tolist() == 0
    assert found["empty"].shape == (0, 4)


def test_whole_numbers_and_other_operators_are_left_out(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        node("axis", "Const", (), field(4, b"\1\0\0\0"), INT32)
        + node("not a constant", "Placeholder", (1,), field(4, floats(1)), FLOAT),
    )
    assert found == {}


@pytest.mark.parametrize("length", [1, 3, 10, 40])
def test_a_file_that_is_cut_off_is_refused(length: int, tmp_path: Path) -> None:
    graph = node("raw", "Const", (2,), field(4, floats(1, 2)), FLOAT)
    with pytest.raises(ValueError, match="is cut off"):
        read(tmp_path, graph[:length])


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no protocol buffer: wire type 3 at byte 1"):
        read(tmp_path, b"\x0b\x00")


@given(st.integers(0, 2**64 - 1))
def test_a_number_reads_back(number: int) -> None:
    written = varint(number)
    assert _varint(memoryview(written), 0) == (number, len(written))
