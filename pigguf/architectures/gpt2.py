"""GPT-2: learned positions, layer norms with biases, one matrix for queries, keys and values.

Sources: transformers' modeling_gpt2.py, whose Conv1D stores transposed matrices; llama.cpp
src/models/gpt2.cpp and conversion/gpt2.py. The published checkpoints were saved from the bare model: their
names lack "transformer.".
"""

from __future__ import annotations

from pigguf.architectures.family import TIED_BY_DEFAULT, Family
from pigguf.architectures.hparam_rules import four_times_hidden_size, kv_heads_equal_heads
from pigguf.architectures.tensor_rules import (
    HIDDEN_SIZE,
    INTERMEDIATE_SIZE,
    ORIGINAL_CONTEXT,
    QKV_SIZE,
    VOCAB_SIZE,
    layer_norm,
    linear,
    lm_head,
    position_embedding,
    tensor,
)

LAYER = "transformer.h.{}"
TENSORS = (
    tensor("transformer.wte.weight", "token_embd.weight", VOCAB_SIZE, HIDDEN_SIZE),
    position_embedding("transformer.wpe.weight", ORIGINAL_CONTEXT),
    *layer_norm(f"{LAYER}.ln_1", "blk.{}.attn_norm"),
    *linear(f"{LAYER}.attn.c_attn", "blk.{}.attn_qkv", QKV_SIZE, HIDDEN_SIZE, transposed=True),
    *linear(f"{LAYER}.attn.c_proj", "blk.{}.attn_output", HIDDEN_SIZE, HIDDEN_SIZE, transposed=True),
    *layer_norm(f"{LAYER}.ln_2", "blk.{}.ffn_norm"),
    *linear(f"{LAYER}.mlp.c_fc", "blk.{}.ffn_up", INTERMEDIATE_SIZE, HIDDEN_SIZE, transposed=True),
    *linear(f"{LAYER}.mlp.c_proj", "blk.{}.ffn_down", HIDDEN_SIZE, INTERMEDIATE_SIZE, transposed=True),
    *layer_norm("transformer.ln_f", "output_norm"),
    lm_head(),
)

TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
GPT2_CONFIG_KEYS = {
    "hidden_size": ("n_embd",),
    "num_hidden_layers": ("n_layer",),
    "num_attention_heads": ("n_head",),
    "intermediate_size": ("n_inner",),
    "max_position_embeddings": ("n_positions",),
}

GPT2 = Family(
    architecture="gpt2",
    hf_classes=("GPT2LMHeadModel",),
    model_type="gpt2",
    tensor_rules=TENSORS,
    ignored_tensors=r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",
    tensor_name_aliases=((r"^(wte|wpe|ln_f|h)\.", r"transformer.\1."),),
    config_key_aliases=GPT2_CONFIG_KEYS,
    default_intermediate_size=four_times_hidden_size,
    read_kv_heads=kv_heads_equal_heads,
    norm_type="layer",
    norm_epsilon_key="layer_norm_epsilon",
    norm_epsilon_default=1e-5,
    optional_features=TIED_BY_DEFAULT,
    allowed_values={
        "hidden_act": None,
        "activation_function": (TANH_GELU, "another activation than the tanh approximation of GELU"),
        "scale_attn_weights": ((True,), "attention that is not scaled"),
        "scale_attn_by_inverse_layer_idx": ((False,), "attention that is scaled by the layer"),
        "add_cross_attention": ((False,), "attention to another model"),
    },
    position_type="learned",
)
