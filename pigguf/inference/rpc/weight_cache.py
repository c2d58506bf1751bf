"""Weights that clients sent to a worker, kept on its disk so that they need not come again.

Before the library sends a large weight (more than 10 MiB) it asks by the hash of its bytes whether the worker
has it. Its own server can keep them, too, but writes files that a kill leaves cut short, believes what it
finds in them, and knows no bound. Here a file appears whole or not at all, is proven before it is used, and
what was used longest ago makes room.

Left out: the library's hash (64 bits of FNV-1a) is not computed again. A client with ill intent may leave
other bytes under it than it says, which is why only those should reach a worker who may.
Upstream: ggml/src/ggml-rpc/ggml-rpc.cpp (rpc_use_hash_cache, set_tensor_hash).
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pigguf.common.files import atomic_write
from pigguf.errors import OutputError

_CHUNK = 1 << 20
_PROOF = 16  # bytes of the check sum after the weights

_log = logging.getLogger("pigguf")


class WeightCache:
    """Files in a directory, each named by its hash.

    Attributes:
        directory: made where it is missing; nobody else can read it then.
        most: bytes of all files together.

    Raises:
        OSError: there can be no such directory.
    """

    def __init__(self, directory: Path, most: int) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory = directory
        self.most = most

    def find(self, hashed: bytes) -> tuple[int, Iterator[bytes]] | None:
        """How many bytes are kept under a hash, and the bytes; None where none are. Damaged ones go."""
        path = self._path(hashed)
        try:
            size = path.stat().st_size - _PROOF
            proof = hashlib.blake2b(digest_size=_PROOF)
            for chunk in _read(path, 0, size):
                proof.update(chunk)
            if b"".join(_read(path, size, _PROOF)) == proof.digest():
                os.utime(path)
                return size, _read(path, 0, size)
        except OSError:  # there is none, or none of that length
            pass
        path.unlink(missing_ok=True)
        return None

    def keep(self, hashed: bytes, size: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Hand on `size` bytes as they come, and keep them once all have; a disk that refuses is a warning.

        Raises:
            Whatever `chunks` raises.
        """
        if size + _PROOF > self.most:
            yield from chunks
            return
        proof = hashlib.blake2b(digest_size=_PROOF)
        try:
            self._make_room(size + _PROOF)
            with atomic_write(self._path(hashed), size + _PROOF) as file:
                for chunk in chunks:
                    yield chunk
                    proof.update(chunk)
                    file.write(chunk)
                file.write(proof.digest())
        except OutputError as error:
            if isinstance(error.__cause__, ConnectionError):  # no matter of the disk: the sender left
                raise error.__cause__ from None
            _log.warning("weights are not kept for the next time: %s", error.message)
            yield from chunks

    def _path(self, hashed: bytes) -> Path:
        return self.directory / hashed.hex()

    def _make_room(self, size: int) -> None:
        """Remove what was used longest ago, until so many bytes more are within the bound."""
        with suppress(OSError):  # another worker keeps here, too
            kept = {path: path.stat() for path in self.directory.iterdir()}
            taken = sum(stat.st_size for stat in kept.values())
            for path in sorted(kept, key=lambda path: kept[path].st_mtime_ns):
                if taken + size <= self.most:
                    return
                path.unlink(missing_ok=True)
                taken -= kept[path].st_size


def _read(path: Path, start: int, count: int) -> Iterator[bytes]:
    """That part of a file.

    Raises:
        OSError: there is no such file, or it is shorter.
    """
    with path.open("rb") as file:
        file.seek(start)
        while count > 0:
            chunk = file.read(min(count, _CHUNK))
            if not chunk:
                raise OSError(f"{path} became shorter")
            yield chunk
            count -= len(chunk)
