"""GGUF headers byte by byte, such as no writer makes."""

from __future__ import annotations

import struct
from collections.abc import Sequence

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARRAY, U64, I64, F64 = range(13)
CODES = {
    U8: "B",
    I8: "b",
    U16: "H",
    I16: "h",
    U32: "I",
    I32: "i",
    F32: "f",
    BOOL: "B",
    U64: "Q",
    I64: "q",
    F64: "d",
}


def text(content: str | bytes, length: int | None = None) -> bytes:
    data = content.encode() if isinstance(content, str) else content
    return struct.pack("<Q", len(data) if length is None else length) + data


def scalar(key: str | bytes, kind: int, value: float | str | bytes) -> bytes:
    packed = struct.pack("<" + CODES[kind], value) if kind in CODES else text(value)
    return text(key) + struct.pack("<I", kind) + packed


def array(key: str, kind: int, count: int, data: bytes = b"") -> bytes:
    return text(key) + struct.pack("<IIQ", ARRAY, kind, count) + data


def tensor(name: str | bytes, shape: Sequence[int], offset: int = 0, kind: int = 0) -> bytes:
    """Return a tensor entry; `shape` is as in the file, columns first, and the default type is F32."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def header(
    keys: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    key_count: int | None = None,
    tensor_count: int | None = None,
) -> bytes:
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(keys) if key_count is None else key_count,
    )
    return b"GGUF" + struct.pack("<IQQ", 3, *counts) + b"".join(keys) + b"".join(tensors)


def padded(data: bytes, alignment: int = 32) -> bytes:
    return data + bytes(-len(data) % alignment)
