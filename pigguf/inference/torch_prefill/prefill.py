"""Prefill a whole prompt in PyTorch, one chunk of some thousand tokens after the other, into a session.

Each prefill is verified: llama.cpp prefills the first few tokens, the first chunk begins with the same
tokens, and in each layer their K and V must equal those in llama.cpp's KV cache (forward.py). Chunks that
were complete when the work was interrupted are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from pigguf.errors import Interrupted
from pigguf.inference.engine.kv_sequence import KVSequence
from pigguf.inference.torch_prefill.attention import AttentionKernel, BlockedAttention, SdpaAttention
from pigguf.inference.torch_prefill.backend import CHUNK_TOKENS, bfloat16_instructions, kv_tensor_types
from pigguf.inference.torch_prefill.forward import PrefillForward
from pigguf.inference.torch_prefill.kv_cache import KVCacheTensors
from pigguf.inference.torch_prefill.layer_weights import WeightLoader
from pigguf.inference.torch_prefill.supported_models import ModelShape
from pigguf.llama_cpp_internals import kv_state_layout
from pigguf.progress import SILENT, Progress
from pigguf.rope import RopeScaling

_VERIFIED_TOKENS = 16  # tokens that are computed both here and by llama.cpp


def prefill_prompt(shape: ModelShape, session: KVSequence, tokens: Sequence[int], progress: Progress) -> None:
    """Append tokens to the session, and advance progress by them.

    Raises:
        PrefillMismatch: the results differ from what llama.cpp computes.
        Interrupted: session.interrupted became true.
        RuntimeError, MemoryError: torch failed.
    """
    prompt = [*session.tokens, *tokens]
    n_verified = len(tokens[:_VERIFIED_TOKENS])
    session.prefill(tokens[:_VERIFIED_TOKENS], SILENT)
    progress.advance(n_verified)
    first = done = session.n_past
    model, options = session.context.model, session.context.options
    with (
        _torch_threads(options.prefill_threads or options.threads),
        WeightLoader(model.file, shape) as weights,
    ):
        transposed = session.context.values_transposed
        cache = KVCacheTensors(shape, len(prompt), *kv_tensor_types(options), transposed=transposed)
        cache.load_state(session.export_state())
        assert isinstance(model.rope, RopeScaling)  # supported_models.py checked it
        forward = PrefillForward(shape, model.rope, weights, _create_attention(shape, len(prompt)), cache)

        def on_progress(share: float) -> None:
            progress.advance(share * (min(len(prompt), done + CHUNK_TOKENS) - done))
            if session.interrupted:
                raise Interrupted(f"prefill was interrupted after {done:,} tokens")

        try:
            while done < len(prompt):
                n_known = n_verified if done == first else 0
                stop = min(len(prompt), done + CHUNK_TOKENS)
                forward.prefill_chunk(prompt[done - n_known : stop], done - n_known, n_known, on_progress)
                done = stop
        finally:
            if done > first:
                state = cache.truncated_state(done)
                kv_state_layout.set_stream_count(state, session.context.options.sequences)
                session.import_state(state, prompt[:done])


def _create_attention(shape: ModelShape, max_cells: int) -> AttentionKernel:
    """Return the faster attention: torch's own kernel on CPUs with matrix tiles."""
    has_tiles = "amx_bf16" in bfloat16_instructions()
    return SdpaAttention(shape, max_cells) if has_tiles else BlockedAttention(shape, max_cells)


@contextmanager
def _torch_threads(count: int | None) -> Iterator[None]:
    """Make torch use `count` threads in the block; None leaves its own number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
