"""The KV state of a sequence as llama.cpp serializes it: parsed, transposed in place, and built.

`llama_state_seq_get_data` gives, for a KV cache without sliding layers and with a stream for each sequence:

    u32 magic, i32 sequence, u32 streams, then for each stream: u32 cells, and where that is not 0
        cells x (i32 position, u32 1, i32 sequence)
        u32 V transposed, u32 layers
        layers x (i32 type, u64 bytes of a row, rows of cells)                          K
        layers x (i32 type, u64 bytes of a row, rows of cells)                          V, or transposed:
        layers x (i32 type, u32 bytes of an element, u32 width, width rows of cells)    V

V is transposed where flash attention is off. Both forms have the same length, so one is converted into the
other in place. Source: llama.cpp src/llama-kv-cache.cpp (state_write_meta, state_write_data),
src/llama-context.cpp (state_seq_get_data); LLAMA_STATE_SEQ_VERSION 3.

Not supported: KV caches with sliding layers (two such states, one after the other), and the cells of M-RoPE,
which have further fields.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pigguf.errors import EngineError
from pigguf.gguf_io import TensorType, row_bytes
from pigguf.llama_cpp_internals import ENGINE_VERSION_HINT

VERSION = 3
_MAGIC = 0xAF143CD8
_CELL = np.dtype([("position", "<i4"), ("sequences", "<u4"), ("sequence", "<i4")])
# Precedes in memory what llama_state_seq_save_file writes after the tokens.
IN_MEMORY_HEADER = struct.pack("<Ii", _MAGIC, 0)

_STREAM_COUNT_OFFSET = len(IN_MEMORY_HEADER)
_LAYER_HEADER_BYTES = 12  # before each layer's K and V
_ELEMENT_DTYPES = {2: np.uint16, 4: np.uint32}  # V is moved bit by bit: F16 and BF16, or F32
_TRANSPOSE_BLOCK = 2048  # rows and columns of a block that stays in the CPU's cache


@dataclass(frozen=True)
class KVStateLayout:
    """Where the fields of a KV state are, and what they hold.

    Attributes:
        cells: the number of tokens.
        transposed: whether V is transposed.
        positions: the cells' positions in the order of the state: (cells,) int32.
        keys, values: the slice of each layer's rows.
        key_types, value_types: each layer's ggml types.
        key_bytes: bytes of one cell's K in each layer.
        value_widths: elements of one cell's V in each layer.
        transposed_offset: the offset of the u32 that states whether V is transposed.
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
    transposed_offset: int


def read_layout(state: bytearray | memoryview) -> KVStateLayout:
    """Parse a KV state, every byte of which must be accounted for.

    Raises:
        EngineError: the layout is another than this module's, or the state holds no cells.
    """
    reader = _StateReader(memoryview(state))
    if reader.u32() != _MAGIC:
        raise _layout_error("it begins with another number")
    reader.skip(4)
    layouts = [_read_stream(reader, cells) for _ in range(reader.u32()) if (cells := reader.u32())]
    if len(layouts) != 1 or reader.offset != len(state):
        raise _layout_error(f"{len(layouts)} streams in {reader.offset} of {len(state)} bytes")
    return layouts[0]


def transpose_values(state: bytearray) -> None:
    """Transpose V in place; besides the state, memory for one layer's V is used.

    Raises:
        EngineError: the layout is another than this module's.
    """
    layout = read_layout(state)
    for rows, type_, width in zip(layout.values, layout.value_types, layout.value_widths, strict=True):
        size = _element_bytes(type_)
        shape = (width, layout.cells) if layout.transposed else (layout.cells, width)
        values = np.frombuffer(state, _ELEMENT_DTYPES[size], layout.cells * width, rows.start).reshape(shape)
        values.reshape(shape[::-1])[:] = _transposed(values)
        header = (
            struct.pack("<iQ", type_, size * width)
            if layout.transposed
            else struct.pack("<iII", type_, size, width)
        )
        state[rows.start - _LAYER_HEADER_BYTES : rows.start] = header
    end = layout.transposed_offset + 4
    state[layout.transposed_offset : end] = struct.pack("<I", not layout.transposed)


def set_stream_count(state: bytearray, streams: int) -> None:
    """Turn a state into one of a context with `streams` sequences, of which only this one has cells.

    Raises:
        EngineError: the layout is another than this module's.
    """
    end = read_layout(state).values[-1].stop
    begin = _STREAM_COUNT_OFFSET + 4
    while state[begin : begin + 4] == bytes(4):  # streams without cells before the one with them
        begin += 4
    del state[end:]
    state[_STREAM_COUNT_OFFSET:begin] = struct.pack("<I", streams)
    state += bytes(4 * (streams - 1))


def state_bytes(cells: int, layer_bytes: Iterator[tuple[int, int]]) -> int:
    """Return the length in bytes of a state of one stream.

    Args:
        cells: the number of tokens.
        layer_bytes: for each layer the bytes of one cell's K and of its V.
    """
    layers = sum(2 * _LAYER_HEADER_BYTES + cells * (key + value) for key, value in layer_bytes)
    return 24 + cells * _CELL.itemsize + layers


def new_state(
    cells: int, key_type: TensorType, value_type: TensorType, widths: tuple[int, ...], *, transposed: bool
) -> tuple[bytearray, KVStateLayout]:
    """Return a state of one stream for tokens at positions 0 to cells - 1, with K and V zero, and its layout.

    Args:
        cells: the number of tokens.
        key_type, value_type: types of K and V.
        widths: elements of one cell's K, which is also that of its V, in each layer.
        transposed: whether V is transposed.
    """
    key_bytes = [row_bytes(key_type, width) for width in widths]
    value_bytes = [row_bytes(value_type, width) for width in widths]
    state = bytearray(state_bytes(cells, zip(key_bytes, value_bytes, strict=True)))
    header = struct.pack("<IiII", _MAGIC, 0, 1, cells)
    table = np.zeros(cells, _CELL)
    table["position"], table["sequences"] = np.arange(cells), 1
    offset = _write_at(state, 0, header + table.tobytes() + struct.pack("<II", transposed, len(widths)))
    for size in key_bytes:
        offset = _write_at(state, offset, struct.pack("<iQ", key_type, size)) + cells * size
    for width, size in zip(widths, value_bytes, strict=True):
        form = ("<iII", value_type, size // width, width) if transposed else ("<iQ", value_type, size)
        offset = _write_at(state, offset, struct.pack(*form)) + cells * size
    return state, read_layout(state)


def _write_at(state: bytearray, offset: int, data: bytes) -> int:
    """Overwrite bytes of the state, and return the offset after them."""
    state[offset : offset + len(data)] = data
    return offset + len(data)


def _read_stream(reader: _StateReader, cells: int) -> KVStateLayout:
    table = np.frombuffer(reader.take(cells * _CELL.itemsize), _CELL)
    if (table["sequences"] != 1).any():
        raise _layout_error("its cells are shared, or hold more than a position")
    transposed_offset = reader.offset
    transposed, layers = bool(reader.u32()), reader.u32()
    keys, values, key_types, value_types, key_bytes, widths = [], [], [], [], [], []
    for _ in range(layers):
        key_types.append(reader.tensor_type())
        key_bytes.append(reader.u64())
        keys.append(reader.skip(cells * key_bytes[-1]))
    for _ in range(layers):
        type_ = reader.tensor_type()
        size = _element_bytes(type_)
        if transposed:
            reader.skip(4)
            width = reader.u32()
            values.append(reader.skip(cells * width * size))
        else:
            row = reader.u64()
            width = row // size if size else 0
            values.append(reader.skip(cells * row))
        value_types.append(type_)
        widths.append(width)
    return KVStateLayout(
        cells, transposed, table["position"].copy(), tuple(keys), tuple(values), tuple(key_types),
        tuple(value_types), tuple(key_bytes), tuple(widths), transposed_offset,
    )  # fmt: skip


class _StateReader:
    """Reads the fields of a state one after the other."""

    def __init__(self, state: memoryview) -> None:
        self.offset = 0
        self._state = state

    def take(self, count: int) -> memoryview:
        return self._state[self.skip(count)]

    def skip(self, count: int) -> slice:
        """Return the slice of the next `count` bytes."""
        if count < 0 or self.offset + count > len(self._state):
            raise _layout_error("it ends early")
        self.offset += count
        return slice(self.offset - count, self.offset)

    def u32(self) -> int:
        return int(struct.unpack("<I", self.take(4))[0])

    def u64(self) -> int:
        return int(struct.unpack("<Q", self.take(8))[0])

    def tensor_type(self) -> TensorType:
        number = struct.unpack("<i", self.take(4))[0]
        try:
            return TensorType(number)
        except ValueError:
            raise _layout_error(f"it holds an unknown type, number {number}") from None


def _element_bytes(type_: TensorType) -> int:
    """Return the bytes of an element, or 0 for a quantized type, which is never transposed."""
    return {TensorType.F16: 2, TensorType.BF16: 2, TensorType.F32: 4}.get(type_, 0)


def _transposed(values: NDArray[np.uint16] | NDArray[np.uint32]) -> NDArray[np.uint16] | NDArray[np.uint32]:
    """Return a transposed copy, made in blocks: whole columns would miss the CPU's cache at every element."""
    result = np.empty(values.shape[::-1], values.dtype)
    for row in range(0, values.shape[0], _TRANSPOSE_BLOCK):
        for column in range(0, values.shape[1], _TRANSPOSE_BLOCK):
            block = values[row : row + _TRANSPOSE_BLOCK, column : column + _TRANSPOSE_BLOCK]
            result[column : column + _TRANSPOSE_BLOCK, row : row + _TRANSPOSE_BLOCK] = block.T
    return result


def _layout_error(reason: str) -> EngineError:
    return EngineError(
        f"the engine's KV state is not laid out as this version of pigguf expects: {reason}",
        ENGINE_VERSION_HINT,
    )
