"""The SHA-256 of a model file, cached on disk, because hashing tens of gigabytes takes a minute.

The cache has a JSON file for each model file, valid while its path, size and modification time are the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pigguf.common.atomic_write import atomic_write
from pigguf.common.file_io import read_error
from pigguf.evals.journal import evals_cache_directory
from pigguf.progress import Progress, stage

_BLOCK_BYTES = 16 << 20


def sha256_of_shards(paths: tuple[Path, ...], progress: Progress) -> str:
    """Return the SHA-256 of a model in hex; that of a split model is the hash of its shards' hashes.

    Args:
        paths: the model's files in order.
        progress: receives one stage in bytes, "hashing", for each file whose hash is not in the cache.

    Raises:
        ReadError: if a file cannot be read.
        OutputError: if the cache directory cannot be written.
    """
    hashes = [_cached_sha256(path, progress) for path in paths]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def _cached_sha256(path: Path, progress: Progress) -> str:
    real_path = path.resolve()
    try:
        status = os.stat(real_path)
        identity = {"path": str(real_path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
        name = hashlib.sha256(str(real_path).encode()).hexdigest()[:24]
        cache_file = evals_cache_directory() / f"sha256-{name}.json"
        cached = _read_cache_file(cache_file)
        if cached.get("file") == identity:
            return str(cached["sha256"])
        digest = _compute_sha256(real_path, status.st_size, progress)
    except OSError as error:
        raise read_error(path, error) from error
    with atomic_write(cache_file) as file:
        file.write(json.dumps({"file": identity, "sha256": digest}).encode())
    return digest


def _read_cache_file(path: Path) -> dict[str, Any]:
    """Return what the cache has of a file: empty if the cache file is missing or damaged."""
    try:
        cached = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return cached if isinstance(cached, dict) and "sha256" in cached else {}


def _compute_sha256(path: Path, size: int, progress: Progress) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file, stage(progress, "hashing", size, "bytes"):
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            progress.advance(len(block))
    return digest.hexdigest()
