"""One cached prompt: the state file that llama.cpp writes for a sequence, with pigguf's metadata at its end.

    u32 magic, u32 version, u32 count, count x i32 token, the KV state         llama.cpp's part
    JSON: model, key, checksum of llama.cpp's part, ...                        metadata
    u64 bytes of the JSON, u32 CRC-32 of the JSON, 8 bytes of our magic        footer

llama.cpp reads its part from the beginning and ignores the rest. Every byte is covered by a checksum, and a
file gets its name when it is complete. It is not synced to disk: after a power failure the checksum shows
whether it is intact. A file is never changed: the time of last use is its modification time.

Upstream: llama.cpp src/llama-context.cpp (state_seq_save_file, state_seq_load_file).
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from pigguf.common.file_io import read_exactly
from pigguf.llama_cpp_internals.kv_state_layout import IN_MEMORY_HEADER

SUFFIX = ".kv"
_MAGIC = b"pigguf\x01\n"
_FOOTER = struct.Struct("<QI8s")
_HEADER = struct.Struct("<3I")
_CHUNK_BYTES = 8 << 20


class DamagedStateFile(Exception):
    """A file that does not have the bytes that were written."""


@dataclass(frozen=True)
class CachedPrompt:
    """A cached prompt, as the metadata of its file states it.

    Attributes:
        path: the file.
        model: the hash of the model's bytes (cache_key.py).
        stamp: the stamp of the model's files (cache_key.py).
        model_path: where the model was.
        tokens: how many tokens the state has.
        state_bytes: the size of llama.cpp's part of the file.
        checksum: the checksum of that part.
        bytes: the size of the file.
        made, used: when it was made and last used, in seconds since the epoch.
    """

    path: Path
    model: str
    stamp: str
    model_path: str
    tokens: int
    state_bytes: int
    checksum: str
    bytes: int
    made: float
    used: float

    @property
    def id(self) -> str:
        """The part of the file's name that identifies it to users."""
        return self.path.stem.rpartition("-")[2]


def finalize(path: Path, state_bytes: int, *, model: str, stamp: str, model_path: str, made: float) -> None:
    """Append metadata and checksum to the file that llama.cpp wrote.

    Raises:
        OSError: the disk is full or failing.
    """
    metadata = {"model": model, "stamp": stamp, "model_path": model_path, "made": made}
    with open(path, "r+b") as file:
        metadata |= {"state_bytes": state_bytes, "checksum": _checksum(file.fileno(), state_bytes)}
        data = json.dumps(metadata).encode()
        file.seek(state_bytes)
        file.write(data + _FOOTER.pack(len(data), zlib.crc32(data), _MAGIC))


def read_entry(path: Path) -> CachedPrompt:
    """Return the metadata of a state file; the checksum of the state is not verified.

    Raises:
        DamagedStateFile: it is not a state file, or not any more.
        OSError: it cannot be read, or does not exist any more.
    """
    with open(path, "rb") as file:
        stat = os.fstat(file.fileno())
        metadata = _read_metadata(file.fileno(), stat.st_size)
        header = os.pread(file.fileno(), _HEADER.size, 0)
    tokens = _HEADER.unpack(header)[2]
    if metadata["state_bytes"] < _HEADER.size + 4 * tokens:
        raise DamagedStateFile("it is too short for its tokens")
    return CachedPrompt(path=path, tokens=tokens, bytes=stat.st_size, used=stat.st_mtime, **metadata)


def _read_metadata(descriptor: int, size: int) -> dict[str, Any]:
    footer = os.pread(descriptor, _FOOTER.size, max(0, size - _FOOTER.size))
    if len(footer) < _FOOTER.size:
        raise DamagedStateFile("it is too short")
    length, crc, magic = _FOOTER.unpack(footer)
    if magic != _MAGIC or length > size - _FOOTER.size:
        raise DamagedStateFile("its footer is wrong")
    data = os.pread(descriptor, length, size - _FOOTER.size - length)
    if zlib.crc32(data) != crc:
        raise DamagedStateFile("the checksum of its metadata is wrong")
    metadata: dict[str, Any] = json.loads(data)
    if metadata["state_bytes"] != size - _FOOTER.size - length:
        raise DamagedStateFile("its length is wrong")
    return metadata


def read_tokens(entry: CachedPrompt) -> NDArray[np.int32]:
    """Return the tokens of a state file: (n_tokens,) int32.

    Raises:
        OSError: it cannot be read, or does not exist any more.
    """
    return np.fromfile(entry.path, "<i4", entry.tokens, offset=_HEADER.size)


@contextmanager
def verified(entry: CachedPrompt) -> Iterator[Path]:
    """Verify all bytes of a state file, and yield a path to them.

    On Linux the path leads to the verified bytes even if another process removes the file meanwhile.

    Raises:
        DamagedStateFile: a checksum is wrong.
        OSError: it cannot be read, or does not exist any more.
    """
    descriptor = os.open(entry.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        metadata = _read_metadata(descriptor, os.fstat(descriptor).st_size)
        if metadata["checksum"] != _checksum(descriptor, entry.state_bytes):
            raise DamagedStateFile("the checksum of its state is wrong")
        open_file = Path(f"/proc/self/fd/{descriptor}")
        yield open_file if open_file.exists() else entry.path
    finally:
        os.close(descriptor)


def read_state(path: Path, entry: CachedPrompt) -> bytearray:
    """Return the KV state alone, in the form of llama_cpp_internals/kv_state_layout.py.

    Raises:
        ReadError, OSError: it cannot be read.
    """
    start = _HEADER.size + 4 * entry.tokens
    state = bytearray(len(IN_MEMORY_HEADER) + entry.state_bytes - start)
    state[: len(IN_MEMORY_HEADER)] = IN_MEMORY_HEADER
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        read_exactly(descriptor, memoryview(state)[len(IN_MEMORY_HEADER) :], start, path)
    finally:
        os.close(descriptor)
    return state


def _checksum(descriptor: int, count: int) -> str:
    """Return the XXH3 (128 bits) of the first `count` bytes of a file."""
    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, count)))
    offset = 0
    while offset < count and (read := os.preadv(descriptor, [buffer[: count - offset]], offset)):
        digest.update(buffer[:read])
        offset += read
    return digest.hexdigest()
