"""InternLM2 and InternLM2.5: Llama under other names, with queries in groups with their key and value.

Sources: the code published with internlm/internlm2-7b (modeling_internlm2.py), for transformers has none
of its own; llama.cpp src/models/internlm2.cpp and conversion/internlm.py. The graph has no biases and
wants an output matrix. An export needs that code too: its config names no auto_map.
"""

from __future__ import annotations

from pigguf.architectures.family import NOT_COMPUTED, TIED, Family
from pigguf.architectures.hparams import HParams
from pigguf.architectures.tensor_rules import (
    INNER,
    QKV,
    QUERIES,
    SEPARATE_QKV,
    VOCAB,
    WIDTH,
    Piece,
    Rows,
    TensorRule,
    grouped_qkv,
    linear,
    norm,
    output,
    rotated_qkv,
    tensor,
)
from pigguf.common.config import Config
from pigguf.errors import UnsupportedModel

LAYER = "model.layers.{}"


def _rows(hparams: HParams) -> Rows:
    return grouped_qkv(hparams)[rotated_qkv(hparams)]


def _check(keys: Config, hparams: HParams) -> None:
    if keys.optional("bias", bool, True):
        raise UnsupportedModel(f"{keys.file}: bias is not false, which asks for biases", NOT_COMPUTED)


INTERNLM2 = Family(
    architecture="internlm2",
    classes=("InternLM2ForCausalLM",),
    model_type="internlm2",
    tensors=(
        tensor("model.tok_embeddings.weight", "token_embd.weight", VOCAB, WIDTH),
        norm(f"{LAYER}.attention_norm", "blk.{}.attn_norm"),
        TensorRule(
            (Piece(f"{LAYER}.attention.wqkv.weight", (QKV, WIDTH)),),
            SEPARATE_QKV,
            order=_rows,
        ),
        *linear(f"{LAYER}.attention.wo", "blk.{}.attn_output", WIDTH, QUERIES, None),
        norm(f"{LAYER}.ffn_norm", "blk.{}.ffn_norm"),
        *linear(f"{LAYER}.feed_forward.w1", "blk.{}.ffn_gate", INNER, WIDTH, None),
        *linear(f"{LAYER}.feed_forward.w3", "blk.{}.ffn_up", INNER, WIDTH, None),
        *linear(f"{LAYER}.feed_forward.w2", "blk.{}.ffn_down", WIDTH, INNER, None),
        norm("model.norm", "output_norm"),
        output("output.weight"),
    ),
    dropped=r"model\.layers\.\d+\.attention\.rotary_emb\.inv_freq",
    parts=TIED,
    only={"tie_word_embeddings": ((False,), "the embedding as output matrix")},
    check=_check,
    export={"bias": False},
)
