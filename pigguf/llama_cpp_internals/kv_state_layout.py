"""A sequence's KV state as llama.cpp lays it out, read and rewritten in place.

`llama_state_seq_get_data` gives, for a cache with one sort of layers and one stream a sequence:

    u32 magic, i32 sequence, u32 streams, for each stream: u32 cells, and where there are any
        cells x (i32 position, u32 1, i32 sequence)
        u32 V transposed, u32 layers
        layers x (i32 type, u64 bytes of a row, cells rows)                         K
        layers x (i32 type, u64 bytes of a row, cells rows)                         V as it is, or
        layers x (i32 type, u32 bytes of an element, u32 width, width rows of cells)  V transposed

V lies transposed where flash attention is off. Both forms are equally long, so that one becomes the other
in its own bytes. Upstream: llama.cpp src/llama-kv-cache.cpp (state_write_meta, state_write_data),
src/llama-context.cpp (state_seq_get_data); LLAMA_STATE_SEQ_VERSION 3.

Left out: caches of sliding layers (two of these, one after the other), and cells of M-RoPE, which carry more.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pigguf.errors import EngineError
from pigguf.gguf_io import TensorType, row_bytes

VERSION = 3
_MAGIC = 0xAF143CD8
_CELL = np.dtype([("position", "<i4"), ("sequences", "<u4"), ("sequence", "<i4")])
BEGINNING = struct.pack("<Ii", _MAGIC, 0)
"""What a state has in memory before what llama_state_seq_save_file writes of it after the tokens."""

_STREAMS = len(BEGINNING)  # where the number of streams stands
_HEAD = 12  # bytes before each layer's K and V
_ELEMENT_TYPES = {2: np.uint16, 4: np.uint32}  # V is moved as it lies: halves or singles
_BLOCK = 2048  # rows of a transposition that stay in the CPU's cache


@dataclass(frozen=True)
class Layout:
    """Where things lie in a state.

    Attributes:
        cells: how many tokens it holds.
        transposed: how V lies.
        positions: of the cells, as they lie: (cells,) int32.
        keys, values: for each layer the slice of its rows.
        key_types, value_types: ggml's types of them.
        key_bytes: of one cell's K in each layer.
        value_widths: elements of one cell's V in each layer.
        flag: where the u32 lies that says how V lies.
    """

    cells: int
    transposed: bool
    positions: NDArray[np.int32]
    keys: tuple[slice, ...]
    values: tuple[slice, ...]
    key_types: tuple[TensorType, ...]
    value_types: tuple[TensorType, ...]
    key_bytes: tuple[int, ...]
    value_widths: tuple[int, ...]
    flag: int


def read_layout(state: bytearray | memoryview) -> Layout:
    """Where things lie in a state; every byte of it must be accounted for.

    Raises:
        EngineError: it is not laid out as this module knows, or holds no cells.
    """
    reader = _Reader(memoryview(state))
    if reader.u32() != _MAGIC:
        raise _unknown("it begins with another number")
    reader.skip(4)
    layouts = [_read_stream(reader, cells) for _ in range(reader.u32()) if (cells := reader.u32())]
    if len(layouts) != 1 or reader.at != len(state):
        raise _unknown(f"{len(layouts)} streams in {reader.at} of {len(state)} bytes")
    return layouts[0]


def transpose_values(state: bytearray) -> None:
    """Lay V out the other way, in the state's own bytes; beside it one layer is held at a time.

    Raises:
        EngineError: it is not laid out as this module knows.
    """
    layout = read_layout(state)
    for where, type_, width in zip(layout.values, layout.value_types, layout.value_widths, strict=True):
        size = _element_bytes(type_)
        shape = (width, layout.cells) if layout.transposed else (layout.cells, width)
        values = np.frombuffer(state, _ELEMENT_TYPES[size], layout.cells * width, where.start).reshape(shape)
        values.reshape(shape[::-1])[:] = _transposed(values)
        head = (
            struct.pack("<iQ", type_, size * width)
            if layout.transposed
            else struct.pack("<iII", type_, size, width)
        )
        state[where.start - _HEAD : where.start] = head
    state[layout.flag : layout.flag + 4] = struct.pack("<I", not layout.transposed)


def set_streams(state: bytearray, streams: int) -> None:
    """Make it a state of a context of so many sequences, each with a stream of its own; only one holds cells.

    Raises:
        EngineError: it is not laid out as this module knows.
    """
    end = read_layout(state).values[-1].stop
    begin = _STREAMS + 4
    while state[begin : begin + 4] == bytes(4):  # streams without cells before the one with them
        begin += 4
    del state[end:]
    state[_STREAMS:begin] = struct.pack("<I", streams)
    state += bytes(4 * (streams - 1))


def state_bytes(cells: int, rows: Iterator[tuple[int, int]]) -> int:
    """How long a state of one stream is; `rows` are the bytes of one cell's K and V in each layer."""
    return 24 + cells * _CELL.itemsize + sum(2 * _HEAD + cells * (key + value) for key, value in rows)


def new_state(
    cells: int, key_type: TensorType, value_type: TensorType, widths: tuple[int, ...], *, transposed: bool
) -> tuple[bytearray, Layout]:
    """A state of one stream for tokens at positions 0 to cells - 1, its K and V still to be filled in.

    Args:
        widths: elements of one cell's K, and of its V, in each layer.
        transposed: how V is to lie.

    Returns:
        The state, and where its rows lie.
    """
    key_bytes = [row_bytes(key_type, width) for width in widths]
    value_bytes = [row_bytes(value_type, width) for width in widths]
    state = bytearray(state_bytes(cells, zip(key_bytes, value_bytes, strict=True)))
    head = struct.pack("<IiII", _MAGIC, 0, 1, cells)
    table = np.zeros(cells, _CELL)
    table["position"], table["sequences"] = np.arange(cells), 1
    at = _put(state, 0, head + table.tobytes() + struct.pack("<II", transposed, len(widths)))
    for size in key_bytes:
        at = _put(state, at, struct.pack("<iQ", key_type, size)) + cells * size
    for width, size in zip(widths, value_bytes, strict=True):
        form = ("<iII", value_type, size // width, width) if transposed else ("<iQ", value_type, size)
        at = _put(state, at, struct.pack(*form)) + cells * size
    return state, read_layout(state)


def _put(state: bytearray, at: int, data: bytes) -> int:
    state[at : at + len(data)] = data
    return at + len(data)


def _read_stream(reader: _Reader, cells: int) -> Layout:
    table = np.frombuffer(reader.take(cells * _CELL.itemsize), _CELL)
    if (table["sequences"] != 1).any():
        raise _unknown("its cells are shared, or carry more than a position")
    flag = reader.at
    transposed, layers = bool(reader.u32()), reader.u32()
    keys, values, key_types, value_types, key_bytes, widths = [], [], [], [], [], []
    for _ in range(layers):
        key_types.append(reader.type())
        key_bytes.append(reader.u64())
        keys.append(reader.rows(cells * key_bytes[-1]))
    for _ in range(layers):
        type_ = reader.type()
        size = _element_bytes(type_)
        if transposed:
            reader.skip(4)
            width = reader.u32()
            values.append(reader.rows(cells * width * size))
        else:
            row = reader.u64()
            width = row // size if size else 0
            values.append(reader.rows(cells * row))
        value_types.append(type_)
        widths.append(width)
    return Layout(
        cells, transposed, table["position"].copy(), tuple(keys), tuple(values), tuple(key_types),
        tuple(value_types), tuple(key_bytes), tuple(widths), flag,
    )  # fmt: skip


class _Reader:
    """Takes a state's fields one after the other."""

    def __init__(self, state: memoryview) -> None:
        self.at = 0
        self._state = state

    def take(self, count: int) -> memoryview:
        if count < 0 or self.at + count > len(self._state):
            raise _unknown("it ends early")
        self.at += count
        return self._state[self.at - count : self.at]

    def skip(self, count: int) -> None:
        self.take(count)

    def rows(self, count: int) -> slice:
        self.take(count)
        return slice(self.at - count, self.at)

    def u32(self) -> int:
        return int(struct.unpack("<I", self.take(4))[0])

    def u64(self) -> int:
        return int(struct.unpack("<Q", self.take(8))[0])

    def type(self) -> TensorType:
        number = struct.unpack("<i", self.take(4))[0]
        try:
            return TensorType(number)
        except ValueError:
            raise _unknown(f"a type of number {number}") from None


def _element_bytes(type_: TensorType) -> int:
    """Bytes of an element; 0 of a quantized type, which is never transposed."""
    return {TensorType.F16: 2, TensorType.BF16: 2, TensorType.F32: 4}.get(type_, 0)


def _transposed(values: NDArray[np.uint16] | NDArray[np.uint32]) -> NDArray[np.uint16] | NDArray[np.uint32]:
    """A transposed copy, block by block: whole columns would miss the CPU's cache at every element."""
    result = np.empty(values.shape[::-1], values.dtype)
    for row in range(0, values.shape[0], _BLOCK):
        for column in range(0, values.shape[1], _BLOCK):
            block = values[row : row + _BLOCK, column : column + _BLOCK]
            result[column : column + _BLOCK, row : row + _BLOCK] = block.T
    return result


def _unknown(why: str) -> EngineError:
    return EngineError(
        f"the engine's KV state is not laid out as this pigguf knows it: {why}",
        "`pigguf doctor` shows which llama-cpp-python is installed, and which one pigguf is made for",
    )
