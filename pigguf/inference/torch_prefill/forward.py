"""One chunk of a prompt through all layers, up to the K and V of the last one.

The residual stream is float32, matrix products are bfloat16, and what is between them is computed in float32
and rounded once. The last layer's attention and feed-forward are only needed for logits, which llama.cpp
computes. Upstream: llama.cpp src/models/llama.cpp, qwen2.cpp, qwen3.cpp; src/llama-graph.cpp (build_qkv,
build_ffn).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import linear, rms_norm, silu

from pigguf.inference.torch_prefill.attention import AttentionKernel, OnProgress
from pigguf.inference.torch_prefill.kv_cache import KVCacheTensors
from pigguf.inference.torch_prefill.layer_weights import LayerWeights, WeightLoader
from pigguf.inference.torch_prefill.rotary import apply_rotary_emb, compute_freqs_cis
from pigguf.inference.torch_prefill.supported_models import ModelShape
from pigguf.rope import RopeScaling

_FFN_ROWS = 1024  # tokens of the feed-forward at once, whose activations are wide
_MAX_DIFFERENCE = 0.3  # relative; rounding makes hundredths of it, wrong RoPE parameters more than all of it


class PrefillMismatch(Exception):
    """K or V that differ from what llama.cpp has computed for the same tokens."""


class PrefillForward:
    """A model's forward pass without logits, for one chunk of a prompt after the other.

    Args:
        shape: the model's dimensions.
        rope: RoPE parameters of a class in `supported_models.ROPE_CLASSES`.
        weights: the weights.
        attention: computes one layer's attention at a time.
        cache: receives K and V.
    """

    def __init__(
        self,
        shape: ModelShape,
        rope: RopeScaling,
        weights: WeightLoader,
        attention: AttentionKernel,
        cache: KVCacheTensors,
    ) -> None:
        self._shape = shape
        self._rope = rope
        self._weights = weights
        self._freq_factors = weights.freq_factors
        self._attention = attention
        self._cache = cache

    @torch.inference_mode()
    def prefill_chunk(self, tokens: Sequence[int], start: int, n_known: int, on_progress: OnProgress) -> None:
        """Write the K and V of tokens at the positions from `start` on; all earlier ones must be written.

        Args:
            tokens: the chunk.
            start: the position of its first token.
            n_known: the K and V of this many of its first tokens are in the KV cache already, from llama.cpp;
                they are compared instead of written.
            on_progress: called after each part of the work with its share of the whole; it may raise.

        Raises:
            PrefillMismatch: the known K or V differ.
            ReadError: the file became shorter.
        """
        n_layer, stop = self._shape.n_layer, start + len(tokens)
        freqs_cis = compute_freqs_cis(self._rope, self._freq_factors, self._shape.head_dim, start, stop)
        hidden = self._weights.embed_tokens(tokens)  # (n_tokens, n_embd)
        for layer in range(n_layer):
            weights = self._weights.load_layer(layer)
            queries, keys, values = self._project_qkv(weights, hidden, freqs_cis)
            for name, cached, computed in (
                ("K", self._cache.keys(layer)[start:stop], keys),
                ("V", self._cache.values(layer)[start:stop], values),
            ):
                _check_equal(f"{name} of layer {layer}", cached[:n_known].float(), computed[:n_known])
                cached[n_known:] = computed[n_known:]
            if layer < n_layer - 1:
                self._attend(
                    layer, weights, hidden, queries, stop, lambda share: on_progress(share / n_layer)
                )
                self._feed_forward(weights, hidden)
        on_progress(1 / n_layer)

    def _project_qkv(
        self, weights: LayerWeights, hidden: torch.Tensor, freqs_cis: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return queries and keys with RoPE applied, and values: (n_tokens, heads, head_dim) float32."""
        shape = self._shape
        normed = rms_norm(hidden, (shape.n_embd,), weights.attention_norm, shape.rms_eps)
        projected = linear(normed.bfloat16(), weights.qkv).float()
        if weights.qkv_bias is not None:
            projected += weights.qkv_bias
        heads = projected.view(len(hidden), -1, shape.head_dim)
        n_query_key = shape.n_head + shape.n_head_kv
        queries, keys, values = (
            heads[:, : shape.n_head],
            heads[:, shape.n_head : n_query_key],
            heads[:, n_query_key:],
        )
        if weights.query_norm is not None:
            queries = rms_norm(queries, (shape.head_dim,), weights.query_norm, shape.rms_eps)
        if weights.key_norm is not None:
            keys = rms_norm(keys, (shape.head_dim,), weights.key_norm, shape.rms_eps)
        queries = apply_rotary_emb(queries, freqs_cis, interleaved=shape.interleaved)
        keys = apply_rotary_emb(keys, freqs_cis, interleaved=shape.interleaved)
        return queries, keys, values

    def _attend(
        self,
        layer: int,
        weights: LayerWeights,
        hidden: torch.Tensor,
        queries: torch.Tensor,
        stop: int,
        on_progress: OnProgress,
    ) -> None:
        """Add the attention's output to the residual stream, in place."""
        self._attention.set_kv(self._cache.keys(layer)[:stop], self._cache.values(layer)[:stop])
        hidden += linear(self._attention.forward(queries, on_progress), weights.output)
        if weights.output_bias is not None:
            hidden += weights.output_bias

    def _feed_forward(self, weights: LayerWeights, hidden: torch.Tensor) -> None:
        """Add the feed-forward's output to the residual stream, in place."""
        shape = self._shape
        for rows in torch.split(hidden, _FFN_ROWS):
            normed = rms_norm(rows, (shape.n_embd,), weights.feed_forward_norm, shape.rms_eps)
            gate_up = linear(normed.bfloat16(), weights.gate_up)
            if weights.gate_up_bias is not None:
                gate_up += weights.gate_up_bias
            gate, up = gate_up.chunk(2, -1)
            rows += linear(silu(gate).mul_(up), weights.down)
            if weights.down_bias is not None:
                rows += weights.down_bias


def _check_equal(name: str, cached: torch.Tensor, computed: torch.Tensor) -> None:
    """Raise if two tensors differ by more than rounding.

    Raises:
        PrefillMismatch: they do.
    """
    difference = float((computed - cached).norm() / cached.norm()) if len(cached) else 0.0
    if not difference <= _MAX_DIFFERENCE:
        raise PrefillMismatch(
            f"{name} differs from what llama.cpp computes (relative difference {difference:.2g})"
        )
