"""Baichuan and Baichuan 2: Llama with queries, keys and values in one matrix; the 13B has ALiBi.

Sources: the code published with baichuan-inc/Baichuan-7B, Baichuan-13B and Baichuan2 (modeling_baichuan.py),
for transformers has none of its own; llama.cpp src/models/baichuan.cpp and conversion/baichuan.py. The graph
tells the 7B from the 13B by their layers, 32 and 40, and gives any other model no positions at all.
Baichuan 2 divides each row of its output matrix by its length (NormHead); vLLM, too, knows it by its
vocabulary. llama.cpp's converter leaves the rows as they are. An export needs that code again.
"""

from __future__ import annotations

from typing import Any

from pigguf.architectures.family import NOT_COMPUTED, TIED, Family
from pigguf.architectures.hparam_rules import Flag, own_keys
from pigguf.architectures.hparams import HParams
from pigguf.architectures.llama import (
    ATTENTION_NORM,
    EMBEDDING,
    FEED_FORWARD_NORM,
    LAYER,
    OUTPUT_NORM,
    ROTARY_BUFFERS,
    feed_forward,
)
from pigguf.architectures.tensor_rules import (
    QKV,
    QUERIES,
    SEPARATE_QKV,
    VOCAB,
    WIDTH,
    Change,
    Piece,
    TensorRule,
    linear,
    rotated_qkv,
    tensor,
)
from pigguf.common.config import Config
from pigguf.errors import UnsupportedModel
from pigguf.rope.unrotated import ALIBI_BY_LAYERS

ROTATED_LAYERS, ALIBI_LAYERS = 32, ALIBI_BY_LAYERS["baichuan"]
UNIT_ROWS = "output rows of length 1"
VOCAB_OF_2 = 125696


class UnitRows(Flag):
    """Whether the code divides each row of the output matrix by its length: Baichuan 2's does."""

    def read(self, keys: Config) -> bool:
        return keys.optional("vocab_size", int, 0) >= VOCAB_OF_2

    def write(self, config: dict[str, Any], present: bool) -> None:
        """Nothing: the vocabulary says it, and the rows are of length 1 by now."""


def _check(keys: Config, hparams: HParams) -> None:
    if hparams.layers not in (ROTATED_LAYERS, ALIBI_LAYERS):
        raise UnsupportedModel(
            f"{keys.says('num_hidden_layers')}: llama.cpp's {hparams.architecture} graph rotates models of "
            f"{ROTATED_LAYERS} layers and has ALiBi for those of {ALIBI_LAYERS}, and no positions for others",
            NOT_COMPUTED,
        )


BAICHUAN = Family(
    architecture="baichuan",
    classes=("BaichuanForCausalLM", "BaiChuanForCausalLM"),
    model_type="baichuan",
    tensors=(
        EMBEDDING,
        ATTENTION_NORM,
        TensorRule(
            (Piece(f"{LAYER}.self_attn.W_pack.weight", (QKV, WIDTH)),), SEPARATE_QKV, order=rotated_qkv
        ),
        *linear(f"{LAYER}.self_attn.o_proj", "blk.{}.attn_output", WIDTH, QUERIES, None),
        FEED_FORWARD_NORM,
        *feed_forward(),
        OUTPUT_NORM,
        tensor("lm_head.weight", "output.weight", VOCAB, WIDTH, when=UNIT_ROWS, change=Change(unit=True)),
        tensor("lm_head.weight", "output.weight", VOCAB, WIDTH, when=f"!{UNIT_ROWS}"),
    ),
    dropped=ROTARY_BUFFERS,
    names={"max_position_embeddings": ("max_position_embeddings", "model_max_length")},
    kv_heads=own_keys,
    parts={**TIED, UNIT_ROWS: UnitRows("vocab_size")},
    only={"tie_word_embeddings": ((False,), "the embedding as output matrix")},
    check=_check,
)
