"""BLOOM: ALiBi, a norm after the embedding, layer norms and biases everywhere.

Sources: transformers' modeling_bloom.py; llama.cpp src/models/bloom.cpp and conversion/bloom.py. Nothing in
the model limits the context; `seq_length`, where a config has it, is the length that it was trained at.
"""

from __future__ import annotations

from pigguf.architectures.family import TIED_BY_DEFAULT, Family
from pigguf.architectures.hparam_rules import four_times_hidden_size, kv_heads_equal_heads
from pigguf.architectures.row_permutations import ungroup_qkv
from pigguf.architectures.tensor_rules import (
    HIDDEN_SIZE,
    INTERMEDIATE_SIZE,
    QKV_SIZE,
    VOCAB_SIZE,
    layer_norm,
    linear,
    lm_head,
    tensor,
)

LAYER = "transformer.h.{}"
TENSORS = (
    tensor("transformer.word_embeddings.weight", "token_embd.weight", VOCAB_SIZE, HIDDEN_SIZE),
    *layer_norm("transformer.word_embeddings_layernorm", "token_embd_norm"),
    *layer_norm(f"{LAYER}.input_layernorm", "blk.{}.attn_norm"),
    *linear(
        f"{LAYER}.self_attention.query_key_value",
        "blk.{}.attn_qkv",
        QKV_SIZE,
        HIDDEN_SIZE,
        permutation=ungroup_qkv,
    ),
    *linear(f"{LAYER}.self_attention.dense", "blk.{}.attn_output", HIDDEN_SIZE, HIDDEN_SIZE),
    *layer_norm(f"{LAYER}.post_attention_layernorm", "blk.{}.ffn_norm"),
    *linear(f"{LAYER}.mlp.dense_h_to_4h", "blk.{}.ffn_up", INTERMEDIATE_SIZE, HIDDEN_SIZE),
    *linear(f"{LAYER}.mlp.dense_4h_to_h", "blk.{}.ffn_down", HIDDEN_SIZE, INTERMEDIATE_SIZE),
    *layer_norm("transformer.ln_f", "output_norm"),
    lm_head(),
)

BLOOM = Family(
    architecture="bloom",
    hf_classes=("BloomForCausalLM", "BloomModel"),
    model_type="bloom",
    tensor_rules=TENSORS,
    tensor_name_aliases=((r"^(word_embeddings|word_embeddings_layernorm|h|ln_f)\.", r"transformer.\1."),),
    config_key_aliases={
        "hidden_size": ("hidden_size", "n_embed"),
        "num_hidden_layers": ("n_layer", "num_hidden_layers"),
        "num_attention_heads": ("n_head", "num_attention_heads"),
        "max_position_embeddings": ("seq_length",),
        "intermediate_size": ("n_inner",),
    },
    default_intermediate_size=four_times_hidden_size,
    read_kv_heads=kv_heads_equal_heads,
    norm_type="layer",
    norm_epsilon_key="layer_norm_epsilon",
    norm_epsilon_default=1e-5,
    optional_features=TIED_BY_DEFAULT,
    allowed_values={
        "hidden_act": None,
        "apply_residual_connection_post_layernorm": ((False,), "residuals taken after the norm"),
    },
    position_type="alibi",
)
