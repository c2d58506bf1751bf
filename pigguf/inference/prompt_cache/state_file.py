"""One kept session: the file llama.cpp streams a sequence into, and what pigguf knows of it behind.

    u32 magic, u32 version, u32 count, count x i32 token, the KV state         llama.cpp's own
    JSON: model, key, checksum of llama.cpp's part, ...                        the facts
    u64 bytes of the JSON, u32 CRC-32 of the JSON, 8 bytes of our magic        the end

llama.cpp reads its part from the file's beginning and never looks beyond it. Every byte is under a
checksum, and a file takes its name when it is whole; it is not waited for on its way to the disk, for
where the power fails the checksum tells. Changed it never is: the time of last use is the file's own.

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

from pigguf.common.files import read_exactly
from pigguf.llama_cpp_internals.kv_state_layout import BEGINNING

SUFFIX = ".kv"
_MAGIC = b"pigguf\x01\n"
_END = struct.Struct("<QI8s")
_HEAD = struct.Struct("<3I")
_READ_BYTES = 8 << 20


class Damaged(Exception):
    """A file that is not what was once kept."""


@dataclass(frozen=True)
class Kept:
    """A kept session, as its file says.

    Attributes:
        path: its file; id: the part of the name by which people call it.
        model, stamp: hash of the model's bytes, and stamp of its files (identity.py).
        model_path: where that model was.
        tokens: how many.
        state_bytes: llama.cpp's part of the file; checksum: of it.
        bytes: of the file.
        made, used: seconds since the epoch.
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
        return self.path.stem.rpartition("-")[2]


def seal(path: Path, state_bytes: int, *, model: str, stamp: str, model_path: str, made: float) -> None:
    """Put facts and checksum behind what llama.cpp wrote.

    Raises:
        OSError: the disk is full or failing.
    """
    facts = {"model": model, "stamp": stamp, "model_path": model_path, "made": made}
    with open(path, "r+b") as file:
        facts |= {"state_bytes": state_bytes, "checksum": _checksum(file.fileno(), state_bytes)}
        data = json.dumps(facts).encode()
        file.seek(state_bytes)
        file.write(data + _END.pack(len(data), zlib.crc32(data), _MAGIC))


def read_kept(path: Path) -> Kept:
    """What a kept file says of itself; whether its state is whole is not looked at.

    Raises:
        Damaged: it is not one, or not any more.
        OSError: it cannot be read, or is gone.
    """
    with open(path, "rb") as file:
        stat = os.fstat(file.fileno())
        facts = _facts(file.fileno(), stat.st_size)
        head = os.pread(file.fileno(), _HEAD.size, 0)
    tokens = _HEAD.unpack(head)[2]
    if facts["state_bytes"] < _HEAD.size + 4 * tokens:
        raise Damaged("it is too short for its tokens")
    return Kept(path=path, tokens=tokens, bytes=stat.st_size, used=stat.st_mtime, **facts)


def _facts(descriptor: int, size: int) -> dict[str, Any]:
    end = os.pread(descriptor, _END.size, max(0, size - _END.size))
    if len(end) < _END.size:
        raise Damaged("it is too short")
    length, crc, magic = _END.unpack(end)
    if magic != _MAGIC or length > size - _END.size:
        raise Damaged("it has another end")
    data = os.pread(descriptor, length, size - _END.size - length)
    if zlib.crc32(data) != crc:
        raise Damaged("its facts do not have their checksum")
    facts: dict[str, Any] = json.loads(data)
    if facts["state_bytes"] != size - _END.size - length:
        raise Damaged("it is of another length")
    return facts


def read_tokens(kept: Kept) -> NDArray[np.int32]:
    """The tokens that a kept file says it holds: (tokens,).

    Raises:
        OSError: it cannot be read, or is gone.
    """
    return np.fromfile(kept.path, "<i4", kept.tokens, offset=_HEAD.size)


@contextmanager
def proven(kept: Kept) -> Iterator[Path]:
    """A path to the kept file's bytes, after all of them were found to be what was written.

    On Linux it leads to these very bytes, even where another process removes the file meanwhile.

    Raises:
        Damaged: they are not.
        OSError: it cannot be read, or is gone.
    """
    descriptor = os.open(kept.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        if _facts(descriptor, os.fstat(descriptor).st_size)["checksum"] != _checksum(
            descriptor, kept.state_bytes
        ):
            raise Damaged("its state does not have its checksum")
        same = Path(f"/proc/self/fd/{descriptor}")
        yield same if same.exists() else kept.path
    finally:
        os.close(descriptor)


def read_state(path: Path, kept: Kept) -> bytearray:
    """The KV state alone, as kv_state.py reads it.

    Raises:
        ReadError, OSError: it cannot be read.
    """
    start = _HEAD.size + 4 * kept.tokens
    state = bytearray(len(BEGINNING) + kept.state_bytes - start)
    state[: len(BEGINNING)] = BEGINNING
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        read_exactly(descriptor, memoryview(state)[len(BEGINNING) :], start, path)
    finally:
        os.close(descriptor)
    return state


def _checksum(descriptor: int, count: int) -> str:
    """XXH3 (128 bits) of the first `count` bytes of a file."""
    hashed = xxhash.xxh3_128()
    buffer = memoryview(bytearray(min(_READ_BYTES, count)))
    at = 0
    while at < count and (got := os.preadv(descriptor, [buffer[: count - at]], at)):
        hashed.update(buffer[:got])
        at += got
    return hashed.hexdigest()
