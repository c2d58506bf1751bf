"""GPT-2: learned positions, layer norms with biases, one matrix for queries, keys and values.

Sources: transformers' modeling_gpt2.py, whose Conv1D keeps matrices the other way round; llama.cpp
src/models/gpt2.cpp and conversion/gpt2.py. Names without "transformer." before them are those of the
published checkpoints, which were saved from the bare model.
"""

from __future__ import annotations

from pigguf.architectures.family import TIED_BY_DEFAULT, Family
from pigguf.architectures.hparam_rules import four_times, own_keys
from pigguf.architectures.tensor_rules import (
    INNER,
    ORIGINAL,
    QKV,
    VOCAB,
    WIDTH,
    layer_norm,
    learned_positions,
    linear,
    output,
    tensor,
)

LAYER = "transformer.h.{}"
TENSORS = (
    tensor("transformer.wte.weight", "token_embd.weight", VOCAB, WIDTH),
    learned_positions("transformer.wpe.weight", ORIGINAL),
    *layer_norm(f"{LAYER}.ln_1", "blk.{}.attn_norm"),
    *linear(f"{LAYER}.attn.c_attn", "blk.{}.attn_qkv", QKV, WIDTH, transposed=True),
    *linear(f"{LAYER}.attn.c_proj", "blk.{}.attn_output", WIDTH, WIDTH, transposed=True),
    *layer_norm(f"{LAYER}.ln_2", "blk.{}.ffn_norm"),
    *linear(f"{LAYER}.mlp.c_fc", "blk.{}.ffn_up", INNER, WIDTH, transposed=True),
    *linear(f"{LAYER}.mlp.c_proj", "blk.{}.ffn_down", WIDTH, INNER, transposed=True),
    *layer_norm("transformer.ln_f", "output_norm"),
    output(),
)

TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
NAMES = {
    "hidden_size": ("n_embd",),
    "num_hidden_layers": ("n_layer",),
    "num_attention_heads": ("n_head",),
    "intermediate_size": ("n_inner",),
    "max_position_embeddings": ("n_positions",),
}

GPT2 = Family(
    architecture="gpt2",
    classes=("GPT2LMHeadModel",),
    model_type="gpt2",
    tensors=TENSORS,
    dropped=r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",
    renamed=((r"^(wte|wpe|ln_f|h)\.", r"transformer.\1."),),
    names=NAMES,
    feed_forward=four_times,
    kv_heads=own_keys,
    norm="layer",
    epsilon=("layer_norm_epsilon", 1e-5),
    parts=TIED_BY_DEFAULT,
    only={
        "hidden_act": None,
        "activation_function": (TANH_GELU, "another activation than the tanh form of GELU"),
        "scale_attn_weights": ((True,), "attention that is not scaled"),
        "scale_attn_by_inverse_layer_idx": ((False,), "attention that is scaled by the layer"),
        "add_cross_attention": ((False,), "attention to another model"),
    },
    positions="learned",
)
