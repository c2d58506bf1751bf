"""Mixtral: Llama without biases, with a mixture of experts in every layer.

Sources: transformers' modeling_mixtral.py; llama.cpp src/models/llama.cpp, the graph of Llama, and
conversion/llama.py. Checkpoints, as published and as save_pretrained writes them, have a tensor for each
expert, the GGUF one tensor of shape (n_expert, n_out, n_in).
"""

from __future__ import annotations

from dataclasses import replace

from pigguf.architectures.family import UNTIED_BY_DEFAULT
from pigguf.architectures.hparam_rules import HParamRule, explicit_sliding_window
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
    HIDDEN_SIZE,
    INTERMEDIATE_SIZE,
    NUM_EXPERTS,
    TensorPattern,
    TensorRule,
    lm_head,
    tensor,
)

MOE_BLOCK = f"{LAYER}.block_sparse_moe"


def expert_tensors(hf: str, gguf: str, rows: str, columns: str) -> TensorRule:
    """Return the rule for a matrix of every expert."""
    return TensorRule(
        (TensorPattern(f"{MOE_BLOCK}.experts.{EXPERT}.{hf}.weight", (rows, columns)),),
        (TensorPattern(f"blk.{{}}.{gguf}.weight", (NUM_EXPERTS, rows, columns)),),
    )


MIXTRAL = replace(
    LLAMA,
    hf_classes=("MixtralForCausalLM",),
    model_type="mixtral",
    tensor_rules=(
        EMBEDDING,
        ATTENTION_NORM,
        *attention(to_interleaved=True),
        FEED_FORWARD_NORM,
        tensor(f"{MOE_BLOCK}.gate.weight", "blk.{}.ffn_gate_inp.weight", NUM_EXPERTS, HIDDEN_SIZE),
        expert_tensors("w1", "ffn_gate_exps", INTERMEDIATE_SIZE, HIDDEN_SIZE),
        expert_tensors("w3", "ffn_up_exps", INTERMEDIATE_SIZE, HIDDEN_SIZE),
        expert_tensors("w2", "ffn_down_exps", HIDDEN_SIZE, INTERMEDIATE_SIZE),
        OUTPUT_NORM,
        lm_head(),
    ),
    config_defaults={"num_key_value_heads": 8, "max_position_embeddings": 131072, "rope_theta": 1e6},
    norm_epsilon_key="rms_norm_eps",
    norm_epsilon_default=1e-5,
    optional_features=UNTIED_BY_DEFAULT,
    hparam_rules=(
        HParamRule("num_local_experts", "expert_count", "u32", 8),
        HParamRule("num_experts_per_tok", "expert_used_count", "u32", 2),
    ),
    allowed_values={"num_local_experts": None, "num_experts": None},
    read_sliding_window=explicit_sliding_window,
    export_config={"sliding_window": None},
)
