"""The vocabulary of the families' tables: tensors by their names on both sides, and what becomes of them.

A rule says which tensors of a checkpoint are which of a GGUF. Most are one and the same under two
names. Where they are not, three things may differ, each of which has an inverse, so that one rule
reads both ways:

    the order of rows   row i of the GGUF's tensors, laid one behind another, is row order[i] of the
                        checkpoint's: heads rotated in another manner, queries, keys and values in one
                        matrix or in three, experts in one tensor or in many
    the values          x * scale + add, or rows made as long as 1
    the axes            a matrix that is kept the other way round

Left out: applying rules (rename.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pigguf.architectures.hparams import UNTIED, HParams

Rows = NDArray[np.int64]
Order = Callable[[HParams], Rows]

# Sizes of tensors, by the config keys that give them (as messages name them).
VOCAB = "vocab_size"
WIDTH = "hidden_size"
INNER = "intermediate_size"
TWICE_INNER = "2 x intermediate_size"
HEAD = "head_dim"
HEADS = "num_attention_heads"
KEY_HEADS = "num_key_value_heads"
QUERIES = "num_attention_heads x head_dim"
KEYS = "num_key_value_heads x head_dim"
QKV = "(num_attention_heads + 2 x num_key_value_heads) x head_dim"
EXPERTS = "num_experts"
ORIGINAL = "original context length"
PADDED_ORIGINAL = "original context length + 2"
CONTEXT = "context length"
SIZES: dict[str, Callable[[HParams], int]] = {
    VOCAB: lambda hparams: hparams.vocab_size,
    WIDTH: lambda hparams: hparams.embedding_length,
    INNER: lambda hparams: hparams.feed_forward_length,
    TWICE_INNER: lambda hparams: 2 * hparams.feed_forward_length,
    HEAD: lambda hparams: hparams.head_dim,
    HEADS: lambda hparams: hparams.heads,
    KEY_HEADS: lambda hparams: hparams.kv_heads,
    QUERIES: lambda hparams: hparams.heads * hparams.head_dim,
    KEYS: lambda hparams: hparams.kv_heads * hparams.head_dim,
    QKV: lambda hparams: (hparams.heads + 2 * hparams.kv_heads) * hparams.head_dim,
    EXPERTS: lambda hparams: hparams.experts,
    ORIGINAL: lambda hparams: hparams.rope.original_context,
    PADDED_ORIGINAL: lambda hparams: hparams.rope.original_context + 2,
    CONTEXT: lambda hparams: hparams.rope.context_length,
}

LAYER, EXPERT = "{}", "{expert}"  # in names: of every layer, of every expert


class Piece(NamedTuple):
    """A tensor on one side: its name, and its sizes as keys of SIZES, rows first."""

    name: str
    shape: tuple[str, ...]


SEPARATE_QKV = (
    Piece("blk.{}.attn_q.weight", (QUERIES, WIDTH)),
    Piece("blk.{}.attn_k.weight", (KEYS, WIDTH)),
    Piece("blk.{}.attn_v.weight", (KEYS, WIDTH)),
)


class Change(NamedTuple):
    """What becomes of values on the way to a GGUF: x * scale + add, in float32.

    `unit`: rows are divided by their length first. That has no way back, and needs none: a checkpoint
    whose code does so computes the same from rows of length 1.
    """

    scale: float = 1.0
    add: float = 0.0
    unit: bool = False


SAME = Change()


@dataclass(frozen=True)
class TensorRule:
    """One row of a family's table: tensors of the model, or of every layer (LAYER in their names).

    Attributes:
        hf: its tensors in a checkpoint, in the order of `order`; an EXPERT in a name stands for one each.
            Empty: the checkpoint has no such tensor, and all of its values are `fill`.
        gguf: its tensors in a GGUF.
        when: the optional part of the model that has it ("!part": that lacks it); "" for all models.
        order: rows in another order; None: as they are.
        change: of values.
        transposed: a checkpoint's matrix has columns where a GGUF's has rows.
        resampled: rows are positions, of which the GGUF may have more (rope/unrotated.py).
        fill: see `hf`.
    """

    hf: tuple[Piece, ...]
    gguf: tuple[Piece, ...]
    when: str = ""
    order: Order | None = None
    change: Change = SAME
    transposed: bool = False
    resampled: bool = False
    fill: float = 0.0

    @property
    def of_layer(self) -> bool:
        return LAYER in self.gguf[0].name


def tensor(
    hf: str,
    gguf: str,
    *shape: str,
    when: str = "",
    order: Order | None = None,
    change: Change = SAME,
    transposed: bool = False,
) -> TensorRule:
    """A rule for one tensor that has the same shape on both sides (the GGUF's, if it is transposed)."""
    kept = shape[::-1] if transposed else shape
    return TensorRule((Piece(hf, kept),), (Piece(gguf, shape),), when, order, change, transposed)


def linear(
    hf: str,
    gguf: str,
    rows: str,
    columns: str,
    bias: str | None = "",
    *,
    order: Order | None = None,
    transposed: bool = False,
) -> tuple[TensorRule, ...]:
    """Rules for a projection: its weight, and its bias where the model has the part that `bias` names.

    `bias` is "" where it always has one, and None where it never does.
    """
    weight = tensor(f"{hf}.weight", f"{gguf}.weight", rows, columns, order=order, transposed=transposed)
    if bias is None:
        return (weight,)
    return weight, tensor(f"{hf}.bias", f"{gguf}.bias", rows, when=bias, order=order)


def norm(hf: str, gguf: str, size: str = WIDTH, *, change: Change = SAME) -> TensorRule:
    """A rule for the weight of a norm."""
    return tensor(f"{hf}.weight", f"{gguf}.weight", size, change=change)


def layer_norm(hf: str, gguf: str, *, when: str = "") -> tuple[TensorRule, ...]:
    """Rules for a norm with weight and bias."""
    return tuple(tensor(f"{hf}.{kind}", f"{gguf}.{kind}", WIDTH, when=when) for kind in ("weight", "bias"))


def learned_positions(hf: str, rows: str) -> TensorRule:
    """The table of learned positions: so many rows in a checkpoint, as many as wanted in a GGUF."""
    kept, made = Piece(hf, (rows, WIDTH)), Piece("position_embd.weight", (CONTEXT, WIDTH))
    return TensorRule((kept,), (made,), resampled=True)


def output(hf: str = "lm_head.weight") -> TensorRule:
    """The output matrix, where it is not the embedding."""
    return tensor(hf, "output.weight", VOCAB, WIDTH, when=UNTIED)


# Orders of rows


def neighbours(heads: Callable[[HParams], int]) -> Order:
    """transformers rotates halves of a head (row i with row i + rotary_dim / 2), llama.cpp neighbours.

    Rows a0 a1 ... b0 b1 ... of a head's rotated part become a0 b0 a1 b1 ...; conversion/llama.py calls
    it permute.
    """

    return _repaired(heads, (2, -1))


def halves(heads: Callable[[HParams], int]) -> Order:
    """The other way about: a checkpoint that rotates neighbours, for a graph that rotates halves."""

    return _repaired(heads, (-1, 2))


def _repaired(heads: Callable[[HParams], int], pairs: tuple[int, int]) -> Order:
    """Each head's rotated rows, laid out in that shape, are read the other way."""

    def order(hparams: HParams) -> Rows:
        head = np.arange(hparams.head_dim, dtype=np.int64)
        head[: hparams.rotary_dim] = head[: hparams.rotary_dim].reshape(pairs).T.reshape(-1)
        starts = np.arange(heads(hparams), dtype=np.int64)[:, None] * hparams.head_dim
        rows: Rows = (starts + head).reshape(-1)
        return rows

    return order


def query_heads(hparams: HParams) -> int:
    return hparams.heads


def key_heads(hparams: HParams) -> int:
    return hparams.kv_heads


def grouped_qkv(hparams: HParams) -> Rows:
    """From groups of queries with their key and value (q q k v, q q k v) to all q, all k, all v.

    So do GPT-NeoX and BLOOM, whose every query has a key of its own, and Falcon and InternLM2.
    """
    queries = hparams.heads // hparams.kv_heads
    rows = np.arange((hparams.heads + 2 * hparams.kv_heads) * hparams.head_dim, dtype=np.int64)
    groups = rows.reshape(hparams.kv_heads, queries + 2, hparams.head_dim)
    parts = (groups[:, :queries], groups[:, queries], groups[:, queries + 1])
    return np.concatenate([part.reshape(-1) for part in parts])


def rotated_qkv(hparams: HParams) -> Rows:
    """All queries, keys and values one behind another: `neighbours` of the first two."""
    queries, keys = hparams.heads * hparams.head_dim, hparams.kv_heads * hparams.head_dim
    of_keys = queries + neighbours(key_heads)(hparams)
    values = np.arange(queries + keys, queries + 2 * keys, dtype=np.int64)
    return np.concatenate([neighbours(query_heads)(hparams), of_keys, values])
