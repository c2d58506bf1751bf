"""Forward: a part of a prompt through all layers, up to the K and V of the last one.

The residual stream is float32, products are bfloat16, and what lies between them is computed in float32 and
rounded once. The last layer's attention and feed-forward would only matter for logits, which are llama.cpp's.
Upstream: llama.cpp src/models/llama.cpp, qwen2.cpp, qwen3.cpp; src/llama-graph.cpp (build_qkv, build_ffn).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import linear, rms_norm, silu

from pigguf.inference.torch_prefill.attention import Attention, Step
from pigguf.inference.torch_prefill.kv_cache import Cache
from pigguf.inference.torch_prefill.layer_weights import Layer, Weights
from pigguf.inference.torch_prefill.rotary import turned, turns
from pigguf.inference.torch_prefill.supported_models import Shape
from pigguf.rope import RopeScaling

_ROWS = 1024  # of the feed-forward at once, whose inner vectors are wide
_MOST_APART = 0.3  # relative; rounding makes hundredths of it, positions read otherwise more than all


class Unproved(Exception):
    """K or V came out otherwise than llama.cpp has computed them."""


class Forward:
    """Reads parts of a prompt into a cache, one after the other.

    Args:
        rope: of a kind in graph.ROPE_KINDS.
    """

    def __init__(
        self, shape: Shape, rope: RopeScaling, weights: Weights, attention: Attention, cache: Cache
    ) -> None:
        self._shape = shape
        self._rope = rope
        self._weights = weights
        self._divisors = weights.divisors
        self._attention = attention
        self._cache = cache

    @torch.inference_mode()
    def read(self, tokens: Sequence[int], start: int, known: int, step: Step) -> None:
        """Write the K and V of tokens at the positions from `start` on, before which all are written.

        Args:
            known: of so many of the first tokens they are written too, and must come out as they are.
            step: called after each part of the work with its share of the whole; it may raise.

        Raises:
            Unproved: they do not.
            ReadError: the file became shorter.
        """
        layers, stop = self._shape.layers, start + len(tokens)
        by = turns(self._rope, self._divisors, self._shape.head_dim, start, stop)
        hidden = self._weights.embedded(tokens)
        for number in range(layers):
            layer = self._weights.layer(number)
            queries, keys, values = self._projected(layer, hidden, by)
            for name, cached, computed in (
                ("K", self._cache.keys(number)[start:stop], keys),
                ("V", self._cache.values(number)[start:stop], values),
            ):
                _refuse_apart(f"{name} of layer {number}", cached[:known].float(), computed[:known])
                cached[known:] = computed[known:]
            if number < layers - 1:
                self._attend(number, layer, hidden, queries, stop, lambda share: step(share / layers))
                self._feed_forward(layer, hidden)
        step(1 / layers)

    def _projected(
        self, layer: Layer, hidden: torch.Tensor, by: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries and keys at their positions, and values: (positions, heads, head_dim) float32."""
        shape = self._shape
        normed = rms_norm(hidden, (shape.width,), layer.attention_norm, shape.epsilon)
        projected = linear(normed.bfloat16(), layer.qkv).float()
        if layer.qkv_bias is not None:
            projected += layer.qkv_bias
        heads = projected.view(len(hidden), -1, shape.head_dim)
        both = shape.heads + shape.kv_heads
        queries, keys, values = heads[:, : shape.heads], heads[:, shape.heads : both], heads[:, both:]
        if layer.query_norm is not None:
            queries = rms_norm(queries, (shape.head_dim,), layer.query_norm, shape.epsilon)
        if layer.key_norm is not None:
            keys = rms_norm(keys, (shape.head_dim,), layer.key_norm, shape.epsilon)
        neighbours = shape.neighbours
        return turned(queries, by, neighbours=neighbours), turned(keys, by, neighbours=neighbours), values

    def _attend(
        self, number: int, layer: Layer, hidden: torch.Tensor, queries: torch.Tensor, stop: int, step: Step
    ) -> None:
        """Add what the queries see to the hidden vectors."""
        self._attention.hold(self._cache.keys(number)[:stop], self._cache.values(number)[:stop])
        hidden += linear(self._attention.attend(queries, step), layer.output)
        if layer.output_bias is not None:
            hidden += layer.output_bias

    def _feed_forward(self, layer: Layer, hidden: torch.Tensor) -> None:
        shape = self._shape
        for rows in torch.split(hidden, _ROWS):
            normed = rms_norm(rows, (shape.width,), layer.feed_forward_norm, shape.epsilon)
            inner = linear(normed.bfloat16(), layer.gate_up)
            if layer.gate_up_bias is not None:
                inner += layer.gate_up_bias
            gate, up = inner.chunk(2, -1)
            rows += linear(silu(gate).mul_(up), layer.down)
            if layer.down_bias is not None:
                rows += layer.down_bias


def _refuse_apart(what: str, cached: torch.Tensor, computed: torch.Tensor) -> None:
    """
    Raises:
        Unproved: they differ by more than rounding.
    """
    apart = float((computed - cached).norm() / cached.norm()) if len(cached) else 0.0
    if not apart <= _MOST_APART:
        raise Unproved(f"{what} comes out otherwise than in llama.cpp, {apart:.2g} of it apart")
