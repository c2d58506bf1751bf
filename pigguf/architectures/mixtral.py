"""Mixtral: Llama without biases, whose every layer has many feed-forwards, of which a token takes a few.

Sources: transformers' modeling_mixtral.py; llama.cpp src/models/llama.cpp, whose graph is Llama's where
there are no experts, and conversion/llama.py. The experts lie in tensors of their own here, as published
and as save_pretrained writes them, and in one tensor with three axes there.
"""

from __future__ import annotations

from dataclasses import replace

from pigguf.architectures.family import TIED
from pigguf.architectures.hparam_rules import KeyRule, stated_window
from pigguf.architectures.llama import (
    ATTENTION_NORM,
    EMBEDDING,
    FEED_FORWARD_NORM,
    LAYER,
    LLAMA,
    OUTPUT_NORM,
    attention,
)
from pigguf.architectures.tensor_rules import (
    EXPERT,
    EXPERTS,
    INNER,
    WIDTH,
    Piece,
    TensorRule,
    output,
    tensor,
)

MIXTURE = f"{LAYER}.block_sparse_moe"


def experts(hf: str, gguf: str, rows: str, columns: str) -> TensorRule:
    """A rule for a matrix that every expert has."""
    return TensorRule(
        (Piece(f"{MIXTURE}.experts.{EXPERT}.{hf}.weight", (rows, columns)),),
        (Piece(f"blk.{{}}.{gguf}.weight", (EXPERTS, rows, columns)),),
    )


MIXTRAL = replace(
    LLAMA,
    classes=("MixtralForCausalLM",),
    model_type="mixtral",
    tensors=(
        EMBEDDING,
        ATTENTION_NORM,
        *attention(rotates_neighbours=True),
        FEED_FORWARD_NORM,
        tensor(f"{MIXTURE}.gate.weight", "blk.{}.ffn_gate_inp.weight", EXPERTS, WIDTH),
        experts("w1", "ffn_gate_exps", INNER, WIDTH),
        experts("w3", "ffn_up_exps", INNER, WIDTH),
        experts("w2", "ffn_down_exps", WIDTH, INNER),
        OUTPUT_NORM,
        output(),
    ),
    defaults={"num_key_value_heads": 8, "max_position_embeddings": 131072, "rope_theta": 1e6},
    epsilon=("rms_norm_eps", 1e-5),
    parts=TIED,
    keys=(
        KeyRule("num_local_experts", "expert_count", "u32", 8),
        KeyRule("num_experts_per_tok", "expert_used_count", "u32", 2),
    ),
    only={"num_local_experts": None, "num_experts": None},
    sliding_window=stated_window,
    export={"sliding_window": None},
)
