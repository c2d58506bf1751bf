"""The KV state of a sequence through llama_state_seq_*: to and from memory, and to and from a file."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from typing import Any

from pigguf.errors import EngineError
from pigguf.inference.engine import library


def export_state(context: Any, seq_id: int) -> bytearray:
    """Return the KV state of a sequence of a llama_context.

    Raises:
        EngineError: llama.cpp failed.
    """
    llama = library.load()
    size = llama.llama_state_seq_get_size(context, seq_id)
    state = bytearray(size)
    raw = (ctypes.c_uint8 * size).from_buffer(state)
    if size == 0 or llama.llama_state_seq_get_data(context, raw, size, seq_id) != size:
        raise EngineError("llama.cpp cannot export the KV state of a sequence")
    return state


def import_state(context: Any, seq_id: int, state: bytearray) -> None:
    """Replace a sequence of a llama_context with a KV state.

    Raises:
        EngineError: llama.cpp rejects it; what the sequence holds is undefined.
    """
    raw = (ctypes.c_uint8 * len(state)).from_buffer(state)
    with library.capture_errors() as errors:
        n_read = library.load().llama_state_seq_set_data(context, raw, len(state), seq_id)
    if n_read != len(state):
        raise EngineError(f"llama.cpp rejects a KV state: {library.failure_reason(errors)}")


def save_state(
    context: Any, seq_id: int, path: str, tokens: Sequence[int], *, check: Callable[[], None]
) -> int:
    """Write tokens and KV state of a sequence to a file, and return the bytes written.

    Args:
        context: a llama_context.
        seq_id: the sequence.
        path: the file.
        tokens: the sequence's tokens.
        check: called after the library's call; it raises if the state is worthless.

    Raises:
        EngineError: the file could not be written completely.
    """
    array = (ctypes.c_int32 * len(tokens))(*tokens)
    with library.capture_errors() as errors:
        written = library.load().llama_state_seq_save_file(
            context, os.fsencode(path), seq_id, array, len(tokens)
        )
    check()
    # The library does not check its last write, which is an fclose.
    if not written or os.path.getsize(path) != written:
        reason = library.failure_reason(errors, "the KV state was not written completely")
        raise EngineError(f"{path}: {reason}")
    return int(written)


def load_state(context: Any, seq_id: int, path: str, n_tokens: int) -> list[int]:
    """Replace a sequence of a llama_context with a file of save_state, and return its tokens.

    Raises:
        EngineError: llama.cpp rejects it, or it does not hold `n_tokens` tokens; what the sequence holds is
            undefined.
    """
    tokens, n_loaded = (ctypes.c_int32 * n_tokens)(), ctypes.c_size_t()
    with library.capture_errors() as errors:
        n_read = library.load().llama_state_seq_load_file(
            context, os.fsencode(path), seq_id, tokens, n_tokens, ctypes.byref(n_loaded)
        )
    if not n_read or n_loaded.value != n_tokens:
        raise EngineError(f"{path}: {library.failure_reason(errors, 'llama.cpp rejects the KV state')}")
    return list(tokens)
