"""Reads the weights of an ONNX file: initialisers by name, and by the product that uses them. No package for ONNX is needed.

An ONNX file is one message of Protocol Buffers (https://protobuf.dev/programming-guides/encoding); of onnx.proto3 these field
numbers count: ModelProto.graph 7; GraphProto.node 1, .initializer 5; NodeProto.input 1, .output 2, .op_type 4;
TensorProto.dims 1, .data_type 2, .name 8, .raw_data 9.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

FLOAT = 1
"""TensorProto.DataType of float32."""

Field = tuple[int, int | memoryview]


@dataclass
class OnnxWeights:
    """The weights of a graph.

    Attributes:
        named: initialisers in float32, by name.
        factors: by the name of a matrix product's output, the name of its second factor, where that is an initialiser.
    """

    named: dict[str, NDArray[np.float32]] = field(default_factory=dict[str, NDArray[np.float32]])
    factors: dict[str, str] = field(default_factory=dict[str, str])


def read_onnx(content: memoryview) -> OnnxWeights:
    """Returns the float32 weights of an ONNX file."""
    found, products = OnnxWeights(), list[tuple[str, str]]()
    graph = next(_bytes(value) for number, value in _fields(content) if number == 7)
    for number, value in _fields(graph):
        if number == 5:
            name, tensor = _tensor(_bytes(value))
            if tensor is not None:
                found.named[name] = tensor
        elif number == 1:
            products += _product(_bytes(value))
    found.factors = {output: weight for output, weight in products if weight in found.named}
    return found


def _tensor(message: memoryview) -> tuple[str, NDArray[np.float32] | None]:
    shape, kind, name, raw = list[int](), 0, "", memoryview(b"")
    for number, value in _fields(message):
        if number == 1:
            shape += [value] if isinstance(value, int) else _packed(value)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8:
            name = _text(value)
        elif number == 9:
            raw = _bytes(value)
    return name, np.frombuffer(raw, dtype="<f4").reshape(shape) if kind == FLOAT and len(raw) else None


def _product(message: memoryview) -> list[tuple[str, str]]:
    """Returns a matrix product's output and second factor; nothing for a node of another kind."""
    parts = list(_fields(message))
    if [_text(value) for number, value in parts if number == 4] != ["MatMul"]:
        return []
    inputs = [_text(value) for number, value in parts if number == 1]
    return [(_text(value), inputs[1]) for number, value in parts if number == 2]


# --- the encoding --------------------------------------------------------------------------------------------------------


def _fields(message: memoryview) -> Iterator[Field]:
    """Yields the number and value of each field; a value with a length as its bytes."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield number, value
            continue
        length = {1: 8, 5: 4}.get(kind)
        if length is None:
            length, place = _varint(message, place)
        yield number, message[place : place + length]
        place += length


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """Returns a whole number, which has seven bits in each of its bytes, the least first; and the place behind it."""
    value = shift = 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, place


def _packed(message: memoryview) -> list[int]:
    found, place = list[int](), 0
    while place < len(message):
        value, place = _varint(message, place)
        found.append(value)
    return found


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("the ONNX file is damaged: a number stands where a message belongs")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_bytes(value)).decode()
