"""Row permutations of attention weights: the layout of heads in transformers -> that in llama.cpp's graphs.

A permutation holds for each row of the GGUF's tensors the row of the checkpoint's, int64, (n_rows,).

transformers rotates dimension i of a head together with i + rotary_dim / 2 (rotate_half, NeoX style); some
graphs of llama.cpp rotate 2i together with 2i + 1 (interleaved, GPT-J style). Only the first rotary_dim
dimensions of a head are affected.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pigguf.architectures.hparams import HParams

RowIndices = NDArray[np.int64]
RowPermutation = Callable[[HParams], RowIndices]


def rotate_half_to_interleaved(heads: Callable[[HParams], int]) -> RowPermutation:
    """Return the permutation from rotate_half to interleaved layout.

    Rows a0 a1 ... b0 b1 ... of a head's rotated part become a0 b0 a1 b1 ... Source: llama.cpp
    conversion/llama.py, permute.

    Args:
        heads: the number of heads in the matrix, query_heads or kv_heads.
    """
    return _permute_heads(heads, (2, -1))


def interleaved_to_rotate_half(heads: Callable[[HParams], int]) -> RowPermutation:
    """Return the permutation from interleaved to rotate_half layout, the inverse of the above.

    Args:
        heads: the number of heads in the matrix, query_heads or kv_heads.
    """
    return _permute_heads(heads, (-1, 2))


def _permute_heads(heads: Callable[[HParams], int], pairs: tuple[int, int]) -> RowPermutation:
    """Return the permutation that transposes each head's rotated rows, reshaped to `pairs`."""

    def permutation(hparams: HParams) -> RowIndices:
        head = np.arange(hparams.head_dim, dtype=np.int64)
        head[: hparams.rotary_dim] = head[: hparams.rotary_dim].reshape(pairs).T.reshape(-1)
        starts = np.arange(heads(hparams), dtype=np.int64)[:, None] * hparams.head_dim
        rows: RowIndices = (starts + head).reshape(-1)
        return rows

    return permutation


def query_heads(hparams: HParams) -> int:
    """Return the number of query heads."""
    return hparams.heads


def kv_heads(hparams: HParams) -> int:
    """Return the number of key and value heads."""
    return hparams.kv_heads


def ungroup_qkv(hparams: HParams) -> RowIndices:
    """Return the permutation from groups (q q k v, q q k v) to all queries, all keys, all values.

    GPT-NeoX, BLOOM (one query a group), Falcon and InternLM2 store a group for each KV head.
    """
    group_size = hparams.heads // hparams.kv_heads
    rows = np.arange((hparams.heads + 2 * hparams.kv_heads) * hparams.head_dim, dtype=np.int64)
    groups = rows.reshape(hparams.kv_heads, group_size + 2, hparams.head_dim)
    qkv = (groups[:, :group_size], groups[:, group_size], groups[:, group_size + 1])
    return np.concatenate([part.reshape(-1) for part in qkv])


def interleave_concatenated_qkv(hparams: HParams) -> RowIndices:
    """Return the permutation from rotate_half to interleaved of concatenated queries, keys and values."""
    q_size, kv_size = hparams.heads * hparams.head_dim, hparams.kv_heads * hparams.head_dim
    keys = q_size + rotate_half_to_interleaved(kv_heads)(hparams)
    values = np.arange(q_size + kv_size, q_size + 2 * kv_size, dtype=np.int64)
    return np.concatenate([rotate_half_to_interleaved(query_heads)(hparams), keys, values])
