"""Attention: softmax(Q K) V of a few thousand queries over a long cache, in bfloat16 products.

Softmax is exp(S - c) over its own sum for any number c of a row, so c need only be near the row's maximum for
exp to stay in range. It is taken from the keys that mostly hold the maximum, those around the query and the
first ones, and goes into the product itself: queries carry -c as two more dimensions (two bfloat16 make
sixteen bits of it), keys carry ones. Scores so come out of a product rounded to bfloat16 where that rounding
is small, close to c, and neither a running maximum nor a rescaling is needed. Where c was far off, the rows
are computed once more with their true maximum.

Blocks are of a size whose scores stay in the cores' caches. Queries that share a key head lie together, so
that products have many rows. Measured in docs/LOG.md: on two Zen 4 cores twice torch's own
scaled_dot_product_attention, which is taken where the CPU has matrix tiles (AMX).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

from pigguf.inference.torch_prefill.supported_models import Shape

Step = Callable[[float], None]  # called after each part of the work, with its share of the whole

_ROWS = 768  # of a block's queries, those of a group counted singly: at most
_KEYS = 2048  # of a block; a multiple of the queries' tokens
_SCORE_BYTES = 1 << 20  # a core's
_SINK = 64  # first keys that c is taken from
_FAR = 12.0  # c may lie so far below the log of a row's sum; in prose it lies 2 below, and 11 at most


class Attention(Protocol):
    """One layer's attention at a time."""

    def hold(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Take all keys and values there are, (cells, kv_heads, head_dim), in place of those before."""

    def attend(self, queries: torch.Tensor, step: Step) -> torch.Tensor:
        """What the queries of the last cells see of the cells up to their own.

        Args:
            queries: (positions, heads, head_dim) float32, not scaled by 1 / sqrt(head_dim) yet.

        Returns:
            (positions, heads * head_dim) bfloat16.
        """


class BlockedAttention:
    """The scheme above.

    Args:
        length: most cells.
    """

    def __init__(self, shape: Shape, length: int) -> None:
        self._shape = shape
        self._tokens = block_tokens(shape)
        rows = self._tokens * shape.group
        room = torch.get_num_threads() * _SCORE_BYTES
        self._at_once = min(shape.kv_heads, max(1, room // (rows * _KEYS * 2)))
        self._all_keys = torch.ones(shape.kv_heads, length, shape.head_dim + 2, dtype=torch.bfloat16)
        self._all_values = torch.empty(shape.kv_heads, length, shape.head_dim, dtype=torch.bfloat16)
        self._scores = torch.empty(self._at_once * rows * _KEYS, dtype=torch.bfloat16)
        self._weighted = torch.empty(self._at_once * rows * shape.head_dim, dtype=torch.bfloat16)
        self._future = hidden_rows(self._tokens, shape.group)
        self._cells = 0

    def hold(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self._cells = len(keys)
        self._all_keys[:, : self._cells, :-2] = keys.transpose(0, 1)
        _copy_rows(values, self._all_values[:, : self._cells])

    def attend(self, queries: torch.Tensor, step: Step) -> torch.Tensor:
        shape, count = self._shape, len(queries)
        rows = self._widened(queries)
        result = torch.empty(count, shape.kv_heads, shape.group, shape.head_dim, dtype=torch.bfloat16)
        begin = self._cells - count
        for start, stop in aligned_blocks(begin, self._cells, self._tokens):
            for heads in _ranges(shape.kv_heads, self._at_once):
                part = rows[heads, (start - begin) * shape.group : (stop - begin) * shape.group]
                seen = self._block(part, heads, start, stop)
                by_cell = seen.view(len(part), -1, shape.group, shape.head_dim).transpose(0, 1)
                result[start - begin : stop - begin, heads] = by_cell
            step((stop - start) / count)
        return result.view(count, -1)

    def _widened(self, queries: torch.Tensor) -> torch.Tensor:
        """Queries scaled, by key heads, with room for -c: (kv_heads, positions * group, head_dim + 2)."""
        shape = self._shape
        wide = torch.zeros(
            shape.kv_heads, len(queries), shape.group, shape.head_dim + 2, dtype=torch.bfloat16
        )
        grouped = queries.view(-1, shape.kv_heads, shape.group, shape.head_dim)
        wide[..., :-2] = (grouped * shape.head_dim**-0.5).transpose(0, 1)
        return wide.flatten(1, 2)

    def _block(self, queries: torch.Tensor, heads: slice, start: int, stop: int) -> torch.Tensor:
        """What the queries of the cells [start, stop) see: (heads, rows, head_dim) float32."""
        self._shift(queries, self._likely_maximum(queries, heads, start, stop))
        sums, weighted = self._summed(queries, heads, start, stop)
        if not bool((sums.log().abs() < _FAR).all()):  # NaN is not less
            self._shift(queries, self._maximum(queries, heads, start, stop))
            sums, weighted = self._summed(queries, heads, start, stop)
        return weighted.div_(sums.unsqueeze(-1))

    def _likely_maximum(self, queries: torch.Tensor, heads: slice, start: int, stop: int) -> torch.Tensor:
        near = self._products(queries, heads, start, start, stop).amax(-1)
        if start == 0:
            return near
        return torch.maximum(near, self._products(queries, heads, start, 0, min(start, _SINK)).amax(-1))

    def _maximum(self, queries: torch.Tensor, heads: slice, start: int, stop: int) -> torch.Tensor:
        queries[..., -2:] = 0
        return torch.stack(
            [
                self._products(queries, heads, start, first, last).amax(-1)
                for first, last in aligned_blocks(0, stop, _KEYS)
            ]
        ).amax(0)

    def _shift(self, queries: torch.Tensor, by: torch.Tensor) -> None:
        """Have the products come out lower by `by`, (heads, rows)."""
        queries[..., -2] = by.neg()
        queries[..., -1] = 0  # products are bfloat16 numbers: one more would not change them

    def _summed(
        self, queries: torch.Tensor, heads: slice, start: int, stop: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums over all keys of exp(S - c), (heads, rows), and of that times V, (heads, rows, head_dim)."""
        sums = queries.new_zeros(queries.shape[:2], dtype=torch.float32)
        weighted = sums.new_zeros(*sums.shape, self._shape.head_dim)
        part = self._weighted[: weighted.numel()].view(weighted.shape)
        for first, last in aligned_blocks(0, stop, _KEYS):
            weights = self._products(queries, heads, start, first, last).exp_()
            sums += weights.sum(-1)
            weighted += torch.bmm(weights, self._all_values[heads, first:last], out=part)
        return sums, weighted

    def _products(
        self, queries: torch.Tensor, heads: slice, start: int, first: int, last: int
    ) -> torch.Tensor:
        """Scores of the keys [first, last), minus infinity where a key lies behind its query's cell."""
        count, rows = queries.shape[:2]
        keys = self._all_keys[heads, first:last]
        scores = self._scores[: count * rows * (last - first)].view(count, rows, last - first)
        torch.bmm(queries, keys.transpose(1, 2), out=scores)
        if last > start:
            tokens = last - start
            scores[..., start - first :].masked_fill_(self._future[:rows, :tokens], -torch.inf)
        return scores


class FusedAttention:
    """torch's own kernel, for which queries that share a key head are rows of one.

    Args:
        length: most cells.
    """

    def __init__(self, shape: Shape, length: int) -> None:
        self._shape = shape
        self._tokens = block_tokens(shape)
        self._length = length
        self._keys = self._values = torch.empty(0, dtype=torch.bfloat16)
        # One mask whose columns are shifted: the last are those of a block's own cells.
        future = hidden_rows(self._tokens, shape.group)
        self._mask = torch.zeros(len(future), length, dtype=torch.bfloat16)
        self._mask = torch.cat((self._mask, future.bfloat16().masked_fill_(future, -torch.inf)), 1)

    def hold(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self._keys, self._values = (part.transpose(0, 1).bfloat16().contiguous() for part in (keys, values))

    def attend(self, queries: torch.Tensor, step: Step) -> torch.Tensor:
        shape, count = self._shape, len(queries)
        by_key = queries.bfloat16().view(count, shape.kv_heads, shape.group, shape.head_dim).transpose(0, 1)
        result = torch.empty(count, shape.kv_heads, shape.group, shape.head_dim, dtype=torch.bfloat16)
        cells = self._keys.shape[1]
        begin = cells - count
        for start, stop in aligned_blocks(begin, cells, self._tokens):
            block = slice(start - begin, stop - begin)
            rows = (stop - start) * shape.group
            mask = self._mask[:rows, self._length - start : self._length + stop - start]
            seen = scaled_dot_product_attention(
                by_key[:, block].flatten(1, 2).unsqueeze(0),
                self._keys[None, :, :stop],
                self._values[None, :, :stop],
                attn_mask=mask,
            )
            by_cell = seen.view(shape.kv_heads, -1, shape.group, shape.head_dim).transpose(0, 1)
            result[block] = by_cell
            step((stop - start) / count)
        return result.view(count, -1)


def block_tokens(shape: Shape) -> int:
    """Positions of a block: a power of two, so that blocks of keys end where they end."""
    return 1 << max(0, min(_KEYS, _ROWS // shape.group).bit_length() - 1)


def aligned_blocks(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges that cover [start, stop), cut at the multiples of `size`."""
    while start < stop:
        end = min(stop, start - start % size + size)
        yield start, end
        start = end


def hidden_rows(tokens: int, group: int) -> torch.Tensor:
    """Which of a block's own cells lie behind each of its rows: (tokens * group, tokens) bool."""
    return torch.ones(tokens, tokens, dtype=torch.bool).triu(1).repeat_interleave(group, 0)


def _ranges(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _copy_rows(values: torch.Tensor, target: torch.Tensor) -> None:
    """(cells, heads, dimensions) of any type into (heads, cells, dimensions) bfloat16.

    Where a dimension's cells lie side by side they are first converted so, then transposed: torch is quick at
    either, and not at both at once.
    """
    if values.stride(0) != 1:
        target.copy_(values.transpose(0, 1))
        return
    narrow = values.permute(1, 2, 0).to(torch.bfloat16, memory_format=torch.contiguous_format)
    for head, rows in zip(narrow, target, strict=True):
        rows.copy_(head.T)
