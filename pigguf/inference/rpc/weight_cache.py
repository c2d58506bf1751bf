"""A worker's cache on disk of the weights that clients sent, so that they are not sent again.

Before llama.cpp sends a large weight (more than 10 MiB) it asks by the hash of its bytes whether the worker
has it. Its own server has a cache too, but writes files that are truncated if it is killed, does not verify
them, and has no size limit. Here files are written atomically and verified before use, and the least recently
used ones are evicted.

llama.cpp's hash (64 bits of FNV-1a) is not verified: a malicious client can store other bytes under it, which
is one reason why only trusted clients should reach a worker.
Upstream: ggml/src/ggml-rpc/ggml-rpc.cpp (rpc_use_hash_cache, set_tensor_hash).
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pigguf.common.atomic_write import atomic_write
from pigguf.errors import OutputError

_CHUNK = 1 << 20
_CHECKSUM_BYTES = 16  # after the weights

_log = logging.getLogger("pigguf")


class WeightCache:
    """Files in a directory, each named by its hash.

    Attributes:
        directory: where the files are; created if it is missing, readable by the user only.
        max_bytes: the most bytes of all files together.

    Raises:
        OSError: the directory cannot be created.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory = directory
        self.max_bytes = max_bytes

    def load(self, content_hash: bytes) -> tuple[int, Iterator[bytes]] | None:
        """Return the size and the chunks of the weights with a hash, or None; remove a damaged file."""
        path = self._path(content_hash)
        try:
            size = path.stat().st_size - _CHECKSUM_BYTES
            checksum = hashlib.blake2b(digest_size=_CHECKSUM_BYTES)
            for chunk in _read(path, 0, size):
                checksum.update(chunk)
            if b"".join(_read(path, size, _CHECKSUM_BYTES)) == checksum.digest():
                os.utime(path)
                return size, _read(path, 0, size)
        except OSError:  # it does not exist, or is too short
            pass
        path.unlink(missing_ok=True)
        return None

    def store(self, content_hash: bytes, size: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the chunks as they come, and store them when they are complete; warn if the disk fails.

        Args:
            content_hash: the hash of the bytes.
            size: how many bytes.
            chunks: the bytes.

        Raises:
            What `chunks` raises.
        """
        if size + _CHECKSUM_BYTES > self.max_bytes:
            yield from chunks
            return
        checksum = hashlib.blake2b(digest_size=_CHECKSUM_BYTES)
        try:
            self._evict(size + _CHECKSUM_BYTES)
            with atomic_write(self._path(content_hash), size + _CHECKSUM_BYTES) as file:
                for chunk in chunks:
                    yield chunk
                    checksum.update(chunk)
                    file.write(chunk)
                file.write(checksum.digest())
        except OutputError as error:
            if isinstance(error.__cause__, ConnectionError):  # not a disk error: the sender disconnected
                raise error.__cause__ from None
            _log.warning("the weights are not cached: %s", error.message)
            yield from chunks

    def _path(self, content_hash: bytes) -> Path:
        return self.directory / content_hash.hex()

    def _evict(self, size: int) -> None:
        """Remove the least recently used files until `size` more bytes fit."""
        with suppress(OSError):  # another worker uses the directory too
            stats = {path: path.stat() for path in self.directory.iterdir()}
            total = sum(stat.st_size for stat in stats.values())
            for path in sorted(stats, key=lambda path: stats[path].st_mtime_ns):
                if total + size <= self.max_bytes:
                    return
                path.unlink(missing_ok=True)
                total -= stats[path].st_size


def _read(path: Path, start: int, count: int) -> Iterator[bytes]:
    """Yield the chunks of a part of a file.

    Raises:
        OSError: the file does not exist, or is too short.
    """
    with path.open("rb") as file:
        file.seek(start)
        while count > 0:
            chunk = file.read(min(count, _CHUNK))
            if not chunk:
                raise OSError(f"{path} became shorter")
            yield chunk
            count -= len(chunk)
