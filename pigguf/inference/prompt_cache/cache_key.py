"""What a KV state depends on: states are shared where all of it is equal, and nowhere else.

Two steps, for a model's bytes take seconds to hash: `state_key` is of what costs nothing to know, and
`model_hash` of the bytes, remembered by the `model_stamp` of the files. Not part of it is how V lies, and
how many sequences the context has: a state can be turned from one to the other (kv_state.py).
"""

from __future__ import annotations

import json
import os
from importlib.metadata import version

import xxhash

from pigguf.common.files import unreadable
from pigguf.inference.engine import Context, Model
from pigguf.inference.engine.context import CACHE_BLOCK

FORMAT = 1  # of kept_file.py, and of the key: another number, and older files are never opened
_READ_BYTES = 8 << 20


def state_key(context: Context) -> str:
    """16 hex digits of the library, the sort of model, positions in force and the cache's types."""
    model, options = context.model, context.options
    facts = {
        "format": FORMAT,
        "library": version("llama-cpp-python"),
        "architecture": model.architecture,
        "bytes": model.size_bytes,
        "rope": model.rope.as_data(),  # the file's, or the user's in its place
        "long": _takes_long_factors(context),
        "cache": (options.cache_k, options.cache_v),
        "rotation": os.environ.get("LLAMA_ATTN_ROT_DISABLE"),  # of quantized caches (llama-kv-cache.cpp)
    }
    return xxhash.xxh3_64_hexdigest(json.dumps(facts, sort_keys=True, default=str).encode())


def _takes_long_factors(context: Context) -> bool:
    """LongRoPE has two lists, and llama.cpp takes one by the context's padded length (get_rope_factors)."""
    rope = context.model.rope
    padded = -(-context.length // CACHE_BLOCK) * CACHE_BLOCK
    return rope.rope_type == "longrope" and padded > rope.original_context


def model_stamp(model: Model) -> str:
    """Path, size, time and inode of the model's files: while these are the same, so are the bytes.

    Raises:
        OSError: a file is gone.
    """
    stats = [(os.path.realpath(part), os.stat(part)) for part in model.file.parts]
    facts = [(path, stat.st_size, stat.st_mtime_ns, stat.st_ino) for path, stat in stats]
    return xxhash.xxh3_128_hexdigest(json.dumps(facts).encode())


def changed_at(model: Model) -> int:
    """When the last of the model's files was changed or renamed, in nanoseconds of time.time_ns().

    Raises:
        OSError: a file is gone.
    """
    return max(os.stat(part).st_ctime_ns for part in model.file.parts)


def model_hash(model: Model) -> str:
    """XXH3 (128 bits) of all the bytes of the model's files: it tells models apart, and proves nothing
    against somebody who makes two alike.

    Raises:
        ReadError: a file cannot be read.
    """
    hashed = xxhash.xxh3_128()
    buffer = memoryview(bytearray(_READ_BYTES))
    for part in model.file.parts:
        try:
            with open(part, "rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    hashed.update(buffer[:count])
        except OSError as error:
            raise unreadable(part, error) from error
    return hashed.hexdigest()
