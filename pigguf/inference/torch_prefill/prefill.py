"""Reading: a prompt in PyTorch, a part of some thousand tokens after the other, into a session.

Every reading is proved as it goes: llama.cpp reads the first few tokens, the first part begins with them once
more, and in each layer their K and V must come out as they lie in its cache (forward.py). Parts that were
done when the work was stopped are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from pigguf.errors import Interrupted
from pigguf.inference.engine.session import Session
from pigguf.inference.torch_prefill.attention import Attention, BlockedAttention, FusedAttention
from pigguf.inference.torch_prefill.backend import PART, bfloat16_arithmetic, cache_types
from pigguf.inference.torch_prefill.forward import Forward
from pigguf.inference.torch_prefill.kv_cache import Cache
from pigguf.inference.torch_prefill.layer_weights import Weights
from pigguf.inference.torch_prefill.supported_models import Shape
from pigguf.llama_cpp_internals import kv_state_layout
from pigguf.progress import SILENT, Progress

_PROOF = 16  # tokens that are computed here and by llama.cpp


def read_prompt(shape: Shape, session: Session, tokens: Sequence[int], progress: Progress) -> None:
    """Append tokens to what the session holds, and tell progress of them.

    Raises:
        Unproved: what comes out is not what llama.cpp computes.
        Interrupted: session.interrupted became true.
        RuntimeError, MemoryError: torch's.
    """
    prompt = [*session.tokens, *tokens]
    session.prefill(tokens[:_PROOF], SILENT)
    progress.advance(len(tokens[:_PROOF]))
    first = done = session.n_past
    model, options = session.context.model, session.context.options
    with _threads(options.prefill_threads or options.threads), Weights(model.file, shape) as weights:
        transposed = session.context.values_transposed
        cache = Cache(shape, len(prompt), *cache_types(options), transposed=transposed)
        cache.take(session.export_state())
        forward = Forward(shape, model.rope, weights, _attention(shape, len(prompt)), cache)

        def step(share: float) -> None:
            progress.advance(share * (min(len(prompt), done + PART) - done))
            if session.interrupted:
                raise Interrupted(f"prefill was interrupted after {done:,} tokens")

        try:
            while done < len(prompt):
                known = len(tokens[:_PROOF]) if done == first else 0
                stop = min(len(prompt), done + PART)
                forward.read(prompt[done - known : stop], done - known, known, step)
                done = stop
        finally:
            if done > first:
                state = cache.first(done)
                kv_state_layout.set_streams(state, session.context.options.sequences)
                session.import_state(state, prompt[:done])


def _attention(shape: Shape, cells: int) -> Attention:
    """torch's own kernel is the faster one where the CPU multiplies tiles."""
    tiles = "amx_bf16" in bfloat16_arithmetic()
    return FusedAttention(shape, cells) if tiles else BlockedAttention(shape, cells)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Have torch compute with so many threads; None is as many as it likes."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
