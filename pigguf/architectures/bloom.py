"""BLOOM: ALiBi, a norm over the embedding, layer norms and biases everywhere.

Sources: transformers' modeling_bloom.py; llama.cpp src/models/bloom.cpp and conversion/bloom.py. Nothing
in the model bounds the window: `seq_length`, where a config has it, says at which it was trained.
"""

from __future__ import annotations

from pigguf.architectures.family import TIED_BY_DEFAULT, Family
from pigguf.architectures.hparam_rules import four_times, own_keys
from pigguf.architectures.tensor_rules import (
    INNER,
    QKV,
    VOCAB,
    WIDTH,
    grouped_qkv,
    layer_norm,
    linear,
    output,
    tensor,
)

LAYER = "transformer.h.{}"
TENSORS = (
    tensor("transformer.word_embeddings.weight", "token_embd.weight", VOCAB, WIDTH),
    *layer_norm("transformer.word_embeddings_layernorm", "token_embd_norm"),
    *layer_norm(f"{LAYER}.input_layernorm", "blk.{}.attn_norm"),
    *linear(f"{LAYER}.self_attention.query_key_value", "blk.{}.attn_qkv", QKV, WIDTH, order=grouped_qkv),
    *linear(f"{LAYER}.self_attention.dense", "blk.{}.attn_output", WIDTH, WIDTH),
    *layer_norm(f"{LAYER}.post_attention_layernorm", "blk.{}.ffn_norm"),
    *linear(f"{LAYER}.mlp.dense_h_to_4h", "blk.{}.ffn_up", INNER, WIDTH),
    *linear(f"{LAYER}.mlp.dense_4h_to_h", "blk.{}.ffn_down", WIDTH, INNER),
    *layer_norm("transformer.ln_f", "output_norm"),
    output(),
)

BLOOM = Family(
    architecture="bloom",
    classes=("BloomForCausalLM", "BloomModel"),
    model_type="bloom",
    tensors=TENSORS,
    renamed=((r"^(word_embeddings|word_embeddings_layernorm|h|ln_f)\.", r"transformer.\1."),),
    names={
        "hidden_size": ("hidden_size", "n_embed"),
        "num_hidden_layers": ("n_layer", "num_hidden_layers"),
        "num_attention_heads": ("n_head", "num_attention_heads"),
        "max_position_embeddings": ("seq_length",),
        "intermediate_size": ("n_inner",),
    },
    feed_forward=four_times,
    kv_heads=own_keys,
    norm="layer",
    epsilon=("layer_norm_epsilon", 1e-5),
    parts=TIED_BY_DEFAULT,
    only={
        "hidden_act": None,
        "apply_residual_connection_post_layernorm": ((False,), "residuals taken behind the norm"),
    },
    positions="alibi",
)
