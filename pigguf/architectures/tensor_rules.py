"""The rules that map a checkpoint's tensors to a GGUF's, of which each family has a table.

Most tensors are the same under two names. Where they are not, three things may differ, each of which can be
inverted, so that one rule works in both directions:

    the order of rows   row i of the GGUF's concatenated tensors is row permutation[i] of the checkpoint's
                        (row_permutations.py); a rule may also join or split tensors (q, k, v; experts)
    the values          x * scale + offset, or rows normalized to length 1
    the axes            a transposed matrix

Not here: applying the rules (tensor_mapping.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from pigguf.architectures.hparams import UNTIED, HParams
from pigguf.architectures.row_permutations import RowPermutation

# Dimensions of tensors, named after the config keys that give them, as messages show them.
VOCAB_SIZE = "vocab_size"
HIDDEN_SIZE = "hidden_size"
INTERMEDIATE_SIZE = "intermediate_size"
TWICE_INTERMEDIATE_SIZE = "2 x intermediate_size"
HEAD_DIM = "head_dim"
NUM_HEADS = "num_attention_heads"
NUM_KV_HEADS = "num_key_value_heads"
Q_SIZE = "num_attention_heads x head_dim"
KV_SIZE = "num_key_value_heads x head_dim"
QKV_SIZE = "(num_attention_heads + 2 x num_key_value_heads) x head_dim"
NUM_EXPERTS = "num_experts"
ORIGINAL_CONTEXT = "original context length"
PADDED_ORIGINAL_CONTEXT = "original context length + 2"
CONTEXT_LENGTH = "context length"
DIMENSIONS: dict[str, Callable[[HParams], int]] = {
    VOCAB_SIZE: lambda hparams: hparams.vocab_size,
    HIDDEN_SIZE: lambda hparams: hparams.embedding_length,
    INTERMEDIATE_SIZE: lambda hparams: hparams.feed_forward_length,
    TWICE_INTERMEDIATE_SIZE: lambda hparams: 2 * hparams.feed_forward_length,
    HEAD_DIM: lambda hparams: hparams.head_dim,
    NUM_HEADS: lambda hparams: hparams.heads,
    NUM_KV_HEADS: lambda hparams: hparams.kv_heads,
    Q_SIZE: lambda hparams: hparams.heads * hparams.head_dim,
    KV_SIZE: lambda hparams: hparams.kv_heads * hparams.head_dim,
    QKV_SIZE: lambda hparams: (hparams.heads + 2 * hparams.kv_heads) * hparams.head_dim,
    NUM_EXPERTS: lambda hparams: hparams.experts,
    ORIGINAL_CONTEXT: lambda hparams: hparams.rope.original_context,
    PADDED_ORIGINAL_CONTEXT: lambda hparams: hparams.rope.original_context + 2,
    CONTEXT_LENGTH: lambda hparams: hparams.rope.context_length,
}

LAYER, EXPERT = "{}", "{expert}"  # placeholders in tensor names


class TensorPattern(NamedTuple):
    """The name of a tensor with placeholders, and its shape as keys of DIMENSIONS, rows first."""

    name: str
    shape: tuple[str, ...]


SEPARATE_QKV = (
    TensorPattern("blk.{}.attn_q.weight", (Q_SIZE, HIDDEN_SIZE)),
    TensorPattern("blk.{}.attn_k.weight", (KV_SIZE, HIDDEN_SIZE)),
    TensorPattern("blk.{}.attn_v.weight", (KV_SIZE, HIDDEN_SIZE)),
)


class ValueTransform(NamedTuple):
    """The change of values from a checkpoint to a GGUF: x * scale + offset, in float32.

    `normalize_rows` first divides each row by its length. That cannot be inverted and need not be: a
    checkpoint whose code normalizes rows computes the same from normalized ones.
    """

    scale: float = 1.0
    offset: float = 0.0
    normalize_rows: bool = False


IDENTITY = ValueTransform()


@dataclass(frozen=True)
class TensorRule:
    """A row of a family's table: tensors of the model, or of every layer (LAYER in their names).

    Attributes:
        hf: its tensors in a checkpoint, in the order of `row_permutation`; a name with EXPERT stands for one
            tensor for each expert. Empty: the checkpoint has none, and all values are `fill_value`.
        gguf: its tensors in a GGUF.
        when: the optional feature of models that have it ("!feature": of models without it); "" for all.
        row_permutation: the order of rows; None if it is the same.
        transform: the change of values.
        transposed: the checkpoint has the transposed matrix.
        is_position_table: rows are learned positions, which may be interpolated to another number
            (pigguf.rope.learned_positions).
        fill_value: see `hf`.
    """

    hf: tuple[TensorPattern, ...]
    gguf: tuple[TensorPattern, ...]
    when: str = ""
    row_permutation: RowPermutation | None = None
    transform: ValueTransform = IDENTITY
    transposed: bool = False
    is_position_table: bool = False
    fill_value: float = 0.0

    @property
    def is_per_layer(self) -> bool:
        """Whether every layer has these tensors."""
        return LAYER in self.gguf[0].name


def tensor(
    hf: str,
    gguf: str,
    *shape: str,
    when: str = "",
    permutation: RowPermutation | None = None,
    transform: ValueTransform = IDENTITY,
    transposed: bool = False,
) -> TensorRule:
    """Return the rule for one tensor.

    Args:
        hf: its name in a checkpoint.
        gguf: its name in a GGUF.
        shape: its shape in the GGUF, rows first.
        when: see TensorRule.
        permutation: see TensorRule.row_permutation.
        transform: see TensorRule.
        transposed: see TensorRule.
    """
    hf_shape = shape[::-1] if transposed else shape
    return TensorRule(
        (TensorPattern(hf, hf_shape),),
        (TensorPattern(gguf, shape),),
        when,
        permutation,
        transform,
        transposed,
    )


def linear(
    hf: str,
    gguf: str,
    rows: str,
    columns: str,
    bias: str | None = "",
    *,
    permutation: RowPermutation | None = None,
    transposed: bool = False,
) -> tuple[TensorRule, ...]:
    """Return the rules for a projection's weight and bias.

    Args:
        hf: its name in a checkpoint, without ".weight".
        gguf: its name in a GGUF, without ".weight".
        rows: the output dimension.
        columns: the input dimension.
        bias: the optional feature of models that have a bias; "" if all have one, None if none has.
        permutation: see TensorRule.row_permutation.
        transposed: see TensorRule.
    """
    weight = tensor(
        f"{hf}.weight", f"{gguf}.weight", rows, columns, permutation=permutation, transposed=transposed
    )
    if bias is None:
        return (weight,)
    return weight, tensor(f"{hf}.bias", f"{gguf}.bias", rows, when=bias, permutation=permutation)


def norm(hf: str, gguf: str, size: str = HIDDEN_SIZE, *, transform: ValueTransform = IDENTITY) -> TensorRule:
    """Return the rule for the weight of a norm."""
    return tensor(f"{hf}.weight", f"{gguf}.weight", size, transform=transform)


def layer_norm(hf: str, gguf: str, *, when: str = "") -> tuple[TensorRule, ...]:
    """Return the rules for the weight and the bias of a layer norm."""
    return tuple(
        tensor(f"{hf}.{name}", f"{gguf}.{name}", HIDDEN_SIZE, when=when) for name in ("weight", "bias")
    )


def position_embedding(hf: str, rows: str) -> TensorRule:
    """Return the rule for a table of learned positions.

    Args:
        hf: its name in a checkpoint.
        rows: its number of rows there; in the GGUF it has a row for each position of the context.
    """
    return TensorRule(
        (TensorPattern(hf, (rows, HIDDEN_SIZE)),),
        (TensorPattern("position_embd.weight", (CONTEXT_LENGTH, HIDDEN_SIZE)),),
        is_position_table=True,
    )


def lm_head(hf: str = "lm_head.weight") -> TensorRule:
    """Return the rule for the output matrix of models that do not tie it to the embedding."""
    return tensor(hf, "output.weight", VOCAB_SIZE, HIDDEN_SIZE, when=UNTIED)
