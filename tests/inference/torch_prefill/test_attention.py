"""Blocked attention against a softmax in double precision, with easy scores and difficult ones."""

from __future__ import annotations

import math

import pytest
import torch

from pigguf.inference.torch_prefill.attention import (
    AttentionKernel,
    BlockedAttention,
    SdpaAttention,
    aligned_blocks,
    block_tokens,
)
from pigguf.inference.torch_prefill.supported_models import ModelShape

KERNELS = (BlockedAttention, SdpaAttention)


def shape_of(heads: int = 4, kv_heads: int = 2, head_dim: int = 16) -> ModelShape:
    return ModelShape(1, 64, 96, heads, kv_heads, head_dim, 1e-5, interleaved=True)


def random_qkv(shape: ModelShape, cells: int, count: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Return the queries of the last cells, and the keys and values of all."""
    torch.manual_seed(seed)
    queries = torch.randn(count, shape.n_head, shape.head_dim)
    keys, values = (torch.randn(cells, shape.n_head_kv, shape.head_dim).half() for _ in range(2))
    return queries, keys, values


def exact(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return attention in double precision: (n_tokens, n_head * head_dim) float64."""
    count, cells = len(queries), len(keys)
    group = queries.shape[1] // keys.shape[1]
    keys, values = (tensor.double().repeat_interleave(group, 1).transpose(0, 1) for tensor in (keys, values))
    scores = queries.double().transpose(0, 1) @ keys.transpose(1, 2) / math.sqrt(queries.shape[-1])
    future = torch.ones(count, cells, dtype=torch.bool).triu(1 + cells - count)
    out = scores.masked_fill(future, -torch.inf).softmax(-1) @ values
    return out.transpose(0, 1).flatten(1)


def attention(kernel: AttentionKernel, *qkv: torch.Tensor) -> torch.Tensor:
    queries, keys, values = qkv
    shares: list[float] = []
    kernel.set_kv(keys, values)
    out = kernel.forward(queries, shares.append)
    assert sum(shares) == pytest.approx(1)
    assert out.dtype == torch.bfloat16
    return out.double()


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (9, 3), (8, 1), (7, 7), (12, 2)])
@pytest.mark.parametrize(("cells", "count"), [(1, 1), (300, 300), (4500, 700), (5001, 1)])
def test_it_is_softmax_up_to_rounding(
    kernel: type[BlockedAttention], heads: int, kv_heads: int, cells: int, count: int
) -> None:
    shape = shape_of(heads, kv_heads)
    qkv = random_qkv(shape, cells, count)
    assert relative_difference(attention(kernel(shape, 6000), *qkv), exact(*qkv)) < 0.01


@pytest.mark.parametrize("kernel", KERNELS)
def test_values_may_be_transposed_in_a_longer_cache(kernel: type[BlockedAttention]) -> None:
    shape = shape_of()
    queries, keys, values = random_qkv(shape, 600, 600)
    cache = torch.full((shape.n_head_kv * shape.head_dim, 900), torch.nan).half()
    cache[:, :600] = values.flatten(1).T
    transposed = cache.T.view(900, shape.n_head_kv, shape.head_dim)[:600]
    assert transposed.stride(0) == 1
    assert (
        relative_difference(
            attention(kernel(shape, 900), queries, keys, transposed), exact(queries, keys, values)
        )
        < 0.01
    )


def test_a_chunk_continues_where_another_ended() -> None:
    shape = shape_of(9, 3)
    queries, keys, values = random_qkv(shape, 2800, 2800)
    kernel = BlockedAttention(shape, 2800)
    chunks = [
        attention(kernel, queries[start:stop], keys[:stop], values[:stop])
        for start, stop in ((0, 37), (37, 2300), (2300, 2800))
    ]
    assert relative_difference(torch.cat(chunks), exact(queries, keys, values)) < 0.01


@pytest.mark.parametrize("size", [20.0, 60.0, 400.0])
@pytest.mark.parametrize("kernel", KERNELS)
def test_one_key_far_away_that_outweighs_all_others(kernel: type[BlockedAttention], size: float) -> None:
    """Neither among the first keys nor near: the estimate of the maximum misses it by `size`."""
    shape = shape_of()
    queries, keys, values = random_qkv(shape, 5000, 200)
    direction = torch.ones(shape.head_dim)
    queries = queries * 0.1 + direction
    keys[1234] = direction * size / math.sqrt(shape.head_dim)
    qkv = (queries, keys, values)
    found = attention(kernel(shape, 5000), *qkv)
    assert relative_difference(found, exact(*qkv)) < 0.01
    if size > 20:
        assert (
            relative_difference(
                found, values[1234].double().repeat_interleave(2, 0).flatten().expand(200, -1)
            )
            < 0.01
        )


@pytest.mark.parametrize("kernel", KERNELS)
def test_scores_of_thousands_whose_differences_matter(kernel: type[BlockedAttention]) -> None:
    """Keys that share a large part, as those with biases do: it is rounded in bfloat16, and cancels."""
    shape = shape_of()
    queries, keys, values = random_qkv(shape, 1000, 300)
    queries[..., 0], keys[..., 0] = 64.0, 128.0
    qkv = (queries, keys, values)
    assert relative_difference(attention(kernel(shape, 1000), *qkv), exact(*qkv)) < 0.02


def test_infinite_keys_give_nan_and_no_wrong_numbers() -> None:
    shape = shape_of()
    queries, keys, values = random_qkv(shape, 100, 100)
    keys[3] = torch.inf
    assert not attention(BlockedAttention(shape, 100), queries, keys, values)[4:].isfinite().all()


def test_blocks_end_at_the_multiples_of_their_size() -> None:
    assert list(aligned_blocks(5, 21, 8)) == [(5, 8), (8, 16), (16, 21)]
    assert list(aligned_blocks(8, 8, 8)) == []


@pytest.mark.parametrize("group", [1, 2, 3, 5, 7, 8, 64, 2000])
def test_a_block_of_queries_is_within_one_block_of_keys(group: int) -> None:
    tokens = block_tokens(shape_of(heads=group, kv_heads=1))
    assert 2048 % tokens == 0
    assert tokens == 1 or 384 < tokens * group <= 768
