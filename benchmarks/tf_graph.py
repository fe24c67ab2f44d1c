"""Reads the constants of a frozen TensorFlow graph, without TensorFlow.

A GraphDef is a protocol buffer: fields of a number, a wire type and a value, in any order
(https://protobuf.dev/programming-guides/encoding/). Only what a constant needs is read, by the
field numbers of tensorflow/core/framework/graph.proto, node_def.proto and tensor.proto.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# The fields that are read, by their message.
NODE_OF_GRAPH = 1
NAME, OPERATOR, ATTRIBUTE = 1, 2, 5
KEY, VALUE = 1, 2
TENSOR_OF_VALUE = 8
DTYPE, SHAPE, CONTENT, FLOATS = 1, 2, 4, 5
DIMENSION, SIZE = 2, 1
# DT_FLOAT of tensorflow/core/framework/types.proto.
FLOAT = 1

Value = int | memoryview
Message = dict[int, list[Value]]


def float_constants(file: Path) -> dict[str, NDArray[np.float32]]:
    """The float constants of a frozen graph, by node name.

    Raises:
        ValueError: the file is no protocol buffer, or ends too early.
    """
    graph = _message(memoryview(file.read_bytes()))
    found = {}
    for node in map(_as_message, graph[NODE_OF_GRAPH]):
        if _text(node[OPERATOR][0]) == "Const":
            tensor = _tensor(node)
            if tensor[DTYPE] == [FLOAT]:
                found[_text(node[NAME][0])] = _array(tensor)
    return found


def _tensor(node: Message) -> Message:
    """The value of a constant: its attribute "value"."""
    attributes = {
        _text(attribute[KEY][0]): _as_message(attribute[VALUE][0])
        for attribute in map(_as_message, node[ATTRIBUTE])
    }
    return _as_message(attributes["value"][TENSOR_OF_VALUE][0])


def _array(tensor: Message) -> NDArray[np.float32]:
    sizes = [_as_message(size) for size in _as_message(tensor[SHAPE][0])[DIMENSION]]
    # Zero is a field's default, and defaults are not written.
    shape = [_number(size[SIZE][0]) if SIZE in size else 0 for size in sizes]
    # As raw bytes, or as packed numbers; a single number stands for all of them.
    content = tensor[CONTENT] or tensor[FLOATS] or [memoryview(bytes(4))]
    values = np.concatenate([np.frombuffer(part, "<f4") for part in content])  # type: ignore[arg-type]
    return np.full(shape, values[0]) if values.size == 1 else values.reshape(shape)


def _number(value: Value) -> int:
    assert isinstance(value, int)
    return value


def _text(value: Value) -> str:
    assert isinstance(value, memoryview)
    return bytes(value).decode()


def _as_message(value: Value) -> Message:
    assert isinstance(value, memoryview)
    return _message(value)


def _message(data: memoryview) -> Message:
    """The values of every field, by number."""
    found: Message = defaultdict(list)
    for field, value in _fields(data):
        found[field].append(value)
    return found


def _fields(data: memoryview) -> Iterator[tuple[int, Value]]:
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        field, kind = tag >> 3, tag & 7
        if kind == VARINT:
            number, position = _varint(data, position)
            yield field, number
            continue
        if kind == BYTES:
            size, position = _varint(data, position)
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"no protocol buffer: wire type {kind} at byte {position}")
        if position + size > len(data):
            raise ValueError(f"a field of {size} bytes at byte {position} is cut off")
        yield field, data[position : position + size]
        position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and the position behind it."""
    number = shift = 0
    while position < len(data):
        byte = data[position]
        number |= (byte & 0x7F) << shift
        shift, position = shift + 7, position + 1
        if byte < 0x80:
            return number, position
    raise ValueError("a number at the end is cut off")
