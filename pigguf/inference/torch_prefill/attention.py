"""Attention: softmax(Q K^T) V of a few thousand queries over a long KV cache, with bfloat16 products.

softmax(S) is exp(S - c) divided by its sum for any c per row, so c only has to be near the row's maximum for
exp to stay in range. It is estimated from the keys that usually hold the maximum: those around the query, and
the first ones (attention sinks). c is part of the matrix product: queries carry -c as two more dimensions
(two bfloat16 numbers have sixteen bits of it), keys carry ones. So scores are rounded to bfloat16 where that
rounding is small, near c, and there is neither a running maximum nor a rescaling. Where c was too far off,
the rows are computed again with their true maximum.

The scores of a block fit into the cores' caches. Queries that share a key head are rows of one product, so
that products have many rows. Measured in docs/LOG.md: on two Zen 4 cores it is twice as fast as torch's own
scaled_dot_product_attention, which is used on CPUs with matrix tiles (AMX).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

from pigguf.inference.torch_prefill.supported_models import ModelShape

OnProgress = Callable[[float], None]  # called after each part of the work, with its share of the whole

_BLOCK_ROWS = 768  # at most; rows are queries times the heads of a group
_BLOCK_KEYS = 2048  # a multiple of a block's queries
_SCORE_BYTES = 1 << 20  # per core
_SINK_KEYS = 64  # first keys that c is estimated from
_MAX_LOG_SUM = 12.0  # c may differ from the log of a row's sum by this; in prose by 2, at most 11


class AttentionKernel(Protocol):
    """One layer's attention at a time."""

    def set_kv(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Replace the keys and values by those of a layer, (n_cells, n_head_kv, head_dim) each."""

    def forward(self, queries: torch.Tensor, on_progress: OnProgress) -> torch.Tensor:
        """Return causal attention for the queries of the last cells.

        Args:
            queries: (n_tokens, n_head, head_dim) float32, not yet scaled by 1 / sqrt(head_dim).

        Returns:
            (n_tokens, n_head * head_dim) bfloat16.
        """


class BlockedAttention:
    """The algorithm above.

    Args:
        shape: the model's dimensions.
        max_cells: the most cells of the KV cache.
    """

    def __init__(self, shape: ModelShape, max_cells: int) -> None:
        self._shape = shape
        self._block_tokens = block_tokens(shape)
        rows = self._block_tokens * shape.gqa_group
        score_bytes = torch.get_num_threads() * _SCORE_BYTES
        self._heads_at_once = min(shape.n_head_kv, max(1, score_bytes // (rows * _BLOCK_KEYS * 2)))
        head_dim, n_head_kv = shape.head_dim, shape.n_head_kv
        self._keys = torch.ones(n_head_kv, max_cells, head_dim + 2, dtype=torch.bfloat16)
        self._values = torch.empty(n_head_kv, max_cells, head_dim, dtype=torch.bfloat16)
        self._scores = torch.empty(self._heads_at_once * rows * _BLOCK_KEYS, dtype=torch.bfloat16)
        self._weighted = torch.empty(self._heads_at_once * rows * head_dim, dtype=torch.bfloat16)
        self._causal_mask = causal_mask_rows(self._block_tokens, shape.gqa_group)
        self._n_cells = 0

    def set_kv(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Replace the keys and values by those of a layer, (n_cells, n_head_kv, head_dim) each."""
        self._n_cells = len(keys)
        self._keys[:, : self._n_cells, :-2] = keys.transpose(0, 1)
        _copy_transposed(values, self._values[:, : self._n_cells])

    def forward(self, queries: torch.Tensor, on_progress: OnProgress) -> torch.Tensor:
        """Return causal attention for the queries of the last cells; see AttentionKernel."""
        shape, n_tokens = self._shape, len(queries)
        rows = self._pad_queries(queries)
        result = torch.empty(n_tokens, shape.n_head_kv, shape.gqa_group, shape.head_dim, dtype=torch.bfloat16)
        begin = self._n_cells - n_tokens
        for start, stop in aligned_blocks(begin, self._n_cells, self._block_tokens):
            for heads in _slices(shape.n_head_kv, self._heads_at_once):
                block = rows[heads, (start - begin) * shape.gqa_group : (stop - begin) * shape.gqa_group]
                out = self._attend_block(block, heads, start, stop)
                by_token = out.view(len(block), -1, shape.gqa_group, shape.head_dim).transpose(0, 1)
                result[start - begin : stop - begin, heads] = by_token
            on_progress((stop - start) / n_tokens)
        return result.view(n_tokens, -1)

    def _pad_queries(self, queries: torch.Tensor) -> torch.Tensor:
        """Return scaled queries by key head, padded for -c: (n_head_kv, n_tokens * group, head_dim + 2)."""
        shape = self._shape
        padded = torch.zeros(
            shape.n_head_kv, len(queries), shape.gqa_group, shape.head_dim + 2, dtype=torch.bfloat16
        )
        grouped = queries.view(-1, shape.n_head_kv, shape.gqa_group, shape.head_dim)
        padded[..., :-2] = (grouped * shape.head_dim**-0.5).transpose(0, 1)
        return padded.flatten(1, 2)

    def _attend_block(self, queries: torch.Tensor, heads: slice, start: int, stop: int) -> torch.Tensor:
        """Return attention for the queries of the cells [start, stop): (heads, rows, head_dim) float32."""
        self._subtract(queries, self._estimate_maximum(queries, heads, start, stop))
        sums, weighted = self._sum_blocks(queries, heads, start, stop)
        if not bool((sums.log().abs() < _MAX_LOG_SUM).all()):  # true for NaN as well
            self._subtract(queries, self._true_maximum(queries, heads, start, stop))
            sums, weighted = self._sum_blocks(queries, heads, start, stop)
        return weighted.div_(sums.unsqueeze(-1))

    def _estimate_maximum(self, queries: torch.Tensor, heads: slice, start: int, stop: int) -> torch.Tensor:
        """Return the maximum score over the block's own keys and the first ones: (heads, rows)."""
        near = self._score(queries, heads, start, start, stop).amax(-1)
        if start == 0:
            return near
        return torch.maximum(near, self._score(queries, heads, start, 0, min(start, _SINK_KEYS)).amax(-1))

    def _true_maximum(self, queries: torch.Tensor, heads: slice, start: int, stop: int) -> torch.Tensor:
        """Return the maximum score over all keys: (heads, rows)."""
        queries[..., -2:] = 0
        return torch.stack(
            [
                self._score(queries, heads, start, first, last).amax(-1)
                for first, last in aligned_blocks(0, stop, _BLOCK_KEYS)
            ]
        ).amax(0)

    def _subtract(self, queries: torch.Tensor, maximum: torch.Tensor) -> None:
        """Make the queries' scores lower by `maximum`, (heads, rows)."""
        queries[..., -2] = maximum.neg()
        queries[..., -1] = 0  # scores are bfloat16 numbers: a second one would not change them

    def _sum_blocks(
        self, queries: torch.Tensor, heads: slice, start: int, stop: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sums over keys of exp(S - c), (heads, rows), and times V, (heads, rows, head_dim)."""
        sums = queries.new_zeros(queries.shape[:2], dtype=torch.float32)
        weighted = sums.new_zeros(*sums.shape, self._shape.head_dim)
        of_block = self._weighted[: weighted.numel()].view(weighted.shape)
        for first, last in aligned_blocks(0, stop, _BLOCK_KEYS):
            weights = self._score(queries, heads, start, first, last).exp_()
            sums += weights.sum(-1)
            weighted += torch.bmm(weights, self._values[heads, first:last], out=of_block)
        return sums, weighted

    def _score(self, queries: torch.Tensor, heads: slice, start: int, first: int, last: int) -> torch.Tensor:
        """Return the scores of the keys [first, last), minus infinity for keys after the query's cell.

        Returns:
            (heads, rows, last - first) bfloat16, valid until the next call.
        """
        count, rows = queries.shape[:2]
        keys = self._keys[heads, first:last]
        scores = self._scores[: count * rows * (last - first)].view(count, rows, last - first)
        torch.bmm(queries, keys.transpose(1, 2), out=scores)
        if last > start:
            scores[..., start - first :].masked_fill_(self._causal_mask[:rows, : last - start], -torch.inf)
        return scores


class SdpaAttention:
    """torch's scaled_dot_product_attention, with the queries that share a key head as rows of one head.

    Args:
        shape: the model's dimensions.
        max_cells: the most cells of the KV cache.
    """

    def __init__(self, shape: ModelShape, max_cells: int) -> None:
        self._shape = shape
        self._block_tokens = block_tokens(shape)
        self._max_cells = max_cells
        self._keys = self._values = torch.empty(0, dtype=torch.bfloat16)
        # One mask of which each block takes other columns: the last ones are those of the block's own cells.
        future = causal_mask_rows(self._block_tokens, shape.gqa_group)
        past_mask = torch.zeros(len(future), max_cells, dtype=torch.bfloat16)
        self._mask = torch.cat((past_mask, future.bfloat16().masked_fill_(future, -torch.inf)), 1)

    def set_kv(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Replace the keys and values by those of a layer, (n_cells, n_head_kv, head_dim) each."""
        self._keys, self._values = (
            tensor.transpose(0, 1).bfloat16().contiguous() for tensor in (keys, values)
        )

    def forward(self, queries: torch.Tensor, on_progress: OnProgress) -> torch.Tensor:
        """Return causal attention for the queries of the last cells; see AttentionKernel."""
        shape, n_tokens = self._shape, len(queries)
        by_key_head = queries.bfloat16().view(n_tokens, shape.n_head_kv, shape.gqa_group, shape.head_dim)
        by_key_head = by_key_head.transpose(0, 1)
        result = torch.empty(n_tokens, shape.n_head_kv, shape.gqa_group, shape.head_dim, dtype=torch.bfloat16)
        n_cells = self._keys.shape[1]
        begin = n_cells - n_tokens
        for start, stop in aligned_blocks(begin, n_cells, self._block_tokens):
            block = slice(start - begin, stop - begin)
            rows = (stop - start) * shape.gqa_group
            mask = self._mask[:rows, self._max_cells - start : self._max_cells + stop - start]
            out = scaled_dot_product_attention(
                by_key_head[:, block].flatten(1, 2).unsqueeze(0),
                self._keys[None, :, :stop],
                self._values[None, :, :stop],
                attn_mask=mask,
            )
            by_token = out.view(shape.n_head_kv, -1, shape.gqa_group, shape.head_dim).transpose(0, 1)
            result[block] = by_token
            on_progress((stop - start) / n_tokens)
        return result.view(n_tokens, -1)


def block_tokens(shape: ModelShape) -> int:
    """Return the tokens of a block: a power of two, so that blocks of keys end where blocks of queries do."""
    return 1 << max(0, min(_BLOCK_KEYS, _BLOCK_ROWS // shape.gqa_group).bit_length() - 1)


def aligned_blocks(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield ranges that cover [start, stop), split at the multiples of `size`."""
    while start < stop:
        end = min(stop, start - start % size + size)
        yield start, end
        start = end


def causal_mask_rows(n_tokens: int, group: int) -> torch.Tensor:
    """Return which of a block's own cells each row must not see: (n_tokens * group, n_tokens) bool."""
    return torch.ones(n_tokens, n_tokens, dtype=torch.bool).triu(1).repeat_interleave(group, 0)


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _copy_transposed(values: torch.Tensor, target: torch.Tensor) -> None:
    """Copy (cells, heads, head_dim) of any type into (heads, cells, head_dim) bfloat16.

    A transposed V is first converted, then transposed: torch is fast at either, and not at both at once.
    """
    if values.stride(0) != 1:
        target.copy_(values.transpose(0, 1))
        return
    converted = values.permute(1, 2, 0).to(torch.bfloat16, memory_format=torch.contiguous_format)
    for head, rows in zip(converted, target, strict=True):
        rows.copy_(head.T)
