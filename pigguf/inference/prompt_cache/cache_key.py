"""What a KV state depends on: a state is only restored if all of it is the same.

There are two steps, because hashing a model's bytes takes seconds: `state_key` covers what is known at once,
and `model_hash` covers the bytes; it is remembered by the `model_stamp` of the files. The layout of V and the
number of sequences in the context are not part of it: a state can be converted between those
(llama_cpp_internals/kv_state_layout.py).
"""

from __future__ import annotations

import json
import os
from importlib.metadata import version

import xxhash

from pigguf.common.file_io import read_error
from pigguf.inference.engine import LlamaContext, Model
from pigguf.llama_cpp_internals.limits import KV_CELL_PADDING

FORMAT = 1  # of state_file.py and of the key: with another number, older files are never opened
_CHUNK_BYTES = 8 << 20


def state_key(context: LlamaContext) -> str:
    """Return 16 hex digits of the library, the kind of model, the RoPE in effect and the KV cache types."""
    model, options = context.model, context.options
    facts = {
        "format": FORMAT,
        "library": version("llama-cpp-python"),
        "architecture": model.architecture,
        "bytes": model.size_bytes,
        "rope": model.rope.as_data(),  # the file's, or its override
        "long": _uses_long_factors(context),
        "cache": (options.cache_k, options.cache_v),
        "rotation": os.environ.get("LLAMA_ATTN_ROT_DISABLE"),  # of quantized caches (llama-kv-cache.cpp)
    }
    return xxhash.xxh3_64_hexdigest(json.dumps(facts, sort_keys=True, default=str).encode())


def _uses_long_factors(context: LlamaContext) -> bool:
    """Return whether llama.cpp uses LongRoPE's long factors.

    It chooses between the short and the long ones by the context's padded length (get_rope_factors).
    """
    rope = context.model.rope
    padded = -(-context.length // KV_CELL_PADDING) * KV_CELL_PADDING
    return rope.rope_type == "longrope" and padded > rope.original_context


def model_stamp(model: Model) -> str:
    """Return a hash of path, size, time and inode of the model's files: if it is unchanged, so are the bytes.

    Raises:
        OSError: a file does not exist any more.
    """
    stats = [(os.path.realpath(part), os.stat(part)) for part in model.file.shards]
    facts = [(path, stat.st_size, stat.st_mtime_ns, stat.st_ino) for path, stat in stats]
    return xxhash.xxh3_128_hexdigest(json.dumps(facts).encode())


def changed_at(model: Model) -> int:
    """Return when the last of the model's files was changed or renamed, in nanoseconds of time.time_ns().

    Raises:
        OSError: a file does not exist any more.
    """
    return max(os.stat(part).st_ctime_ns for part in model.file.shards)


def model_hash(model: Model) -> str:
    """Return the XXH3 (128 bits) of all bytes of the model's files.

    It distinguishes models; it is not secure against someone who constructs two with the same hash.

    Raises:
        ReadError: a file cannot be read.
    """
    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    for part in model.file.shards:
        try:
            with open(part, "rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    digest.update(buffer[:count])
        except OSError as error:
            raise read_error(part, error) from error
    return digest.hexdigest()
