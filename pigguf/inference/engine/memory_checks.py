"""Whether weights and KV caches fit into free memory, from their sizes alone, before allocation.

Not here: exact sizes from the engine itself (memory_estimate.py), and choosing settings that fit
(inference/memory_planning/).
"""

from __future__ import annotations

from pigguf.common.format_bytes import format_memory
from pigguf.common.system_memory import available_memory
from pigguf.errors import DoesNotFit, GGUFError, UsageError
from pigguf.gguf_io import GGUFFile, TensorType, row_bytes


def kv_row_bytes(cache_type: str, head_dim: int) -> int:
    """Return the bytes of one head of one token in a KV cache.

    Raises:
        UsageError: heads of `head_dim` dimensions are not a whole number of the type's blocks.
    """
    try:
        return row_bytes(getattr(TensorType, cache_type.upper()), head_dim)
    except GGUFError:
        raise UsageError(
            f"a KV cache of type {cache_type} does not fit this model's heads of {head_dim} dimensions",
            "take f16",
        ) from None


def check_weights_fit(file: GGUFFile) -> None:
    """Raise if a file's weights are larger than the free memory.

    Raises:
        DoesNotFit: they are.
    """
    available = available_memory()
    if available is not None and file.size > available:
        raise DoesNotFit(
            f"{file.path}: weights of {format_memory(file.size)}, and {format_memory(available)} "
            f"of memory are free",
            "take a smaller quantization, or close other programs",
        )


def check_kv_cache_fits(length: int, kv_cache_bytes: int) -> None:
    """Raise if a KV cache is larger than the free memory.

    Args:
        length: the context window in tokens, for the message.
        kv_cache_bytes: the size of the cache.

    Raises:
        DoesNotFit: it is.
    """
    available = available_memory()
    if available is not None and kv_cache_bytes > available:
        raise DoesNotFit(
            f"a context of {length:,} tokens takes {format_memory(kv_cache_bytes)} for its KV cache and "
            f"{format_memory(available)} of memory are free",
            "take a shorter context, or a quantized KV cache",
        )
