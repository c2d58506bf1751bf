"""The reference: a plain llama_decode loop on llama_cpp's functions, without pigguf's engine."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from pigguf.inference.engine import library


@contextmanager
def bare_context(path: Path, length: int, batch: int = 512, *, exact: bool = False) -> Iterator[Any]:
    """Open a llama_context with llama.cpp's defaults; `exact` computes attention in single precision."""
    library.load()  # for its quiet log
    parameters = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    options = llama_cpp.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = length, batch, batch
    options.n_threads = options.n_threads_batch = 2
    if exact:
        options.type_k = options.type_v = 0  # F32
        options.flash_attn_type = 0
    context = llama_cpp.llama_init_from_model(model, options)
    try:
        yield context
    finally:
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)


def decode(context: Any, tokens: Sequence[int]) -> None:
    """Decode tokens at the next positions of sequence 0 in one batch; the last one's logits are kept."""
    array = (ctypes.c_int32 * len(tokens))(*tokens)
    assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens))) == 0


def last_logits(context: Any) -> NDArray[np.float32]:
    vocab = llama_cpp.llama_model_get_vocab(llama_cpp.llama_get_model(context))
    size = llama_cpp.llama_vocab_n_tokens(vocab)
    return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), (size,)).copy()


def greedy(path: Path, prompt: Sequence[int], count: int, length: int) -> list[int]:
    """Return `count` most likely tokens, each decoded by itself."""
    generated: list[int] = []
    with bare_context(path, length) as context:
        decode(context, prompt)
        for _ in range(count):
            generated.append(int(last_logits(context).argmax()))
            decode(context, generated[-1:])
    return generated


def logits_after_each(path: Path, tokens: Sequence[int], length: int) -> NDArray[np.float32]:
    """Return (n_tokens, vocab_size) logits, each token decoded by itself in single precision."""
    rows = []
    with bare_context(path, length, exact=True) as context:
        for token in tokens:
            decode(context, [token])
            rows.append(last_logits(context))
    return np.stack(rows)
