"""Llama: LlamaForCausalLM and what took its shape (Vicuna, Code Llama, SmolLM2, Yi, DeepSeek-coder, ...).

Sources: transformers' modeling_llama.py; llama.cpp src/models/llama.cpp and conversion/llama.py.
Queries and keys are rotated in neighbouring pairs there and in halves of a head here, so their rows
change places. The output matrix may be absent from a GGUF: the embedding then serves as one.
"""

from __future__ import annotations

from pigguf.arch.family import TIED, Family
from pigguf.arch.keys import Flag
from pigguf.arch.table import (
    INNER,
    KEYS,
    QUERIES,
    VOCAB,
    WIDTH,
    key_heads,
    linear,
    neighbours,
    norm,
    output,
    query_heads,
    tensor,
)

ATTENTION_BIAS, MLP_BIAS = "attention_bias", "mlp_bias"

LAYER = "model.layers.{}"
EMBEDDING = tensor("model.embed_tokens.weight", "token_embd.weight", VOCAB, WIDTH)
TENSORS = (
    EMBEDDING,
    norm(f"{LAYER}.input_layernorm", "blk.{}.attn_norm"),
    *linear(
        f"{LAYER}.self_attn.q_proj",
        "blk.{}.attn_q",
        QUERIES,
        WIDTH,
        ATTENTION_BIAS,
        order=neighbours(query_heads),
    ),
    *linear(
        f"{LAYER}.self_attn.k_proj", "blk.{}.attn_k", KEYS, WIDTH, ATTENTION_BIAS, order=neighbours(key_heads)
    ),
    *linear(f"{LAYER}.self_attn.v_proj", "blk.{}.attn_v", KEYS, WIDTH, ATTENTION_BIAS),
    *linear(f"{LAYER}.self_attn.o_proj", "blk.{}.attn_output", WIDTH, QUERIES, ATTENTION_BIAS),
    norm(f"{LAYER}.post_attention_layernorm", "blk.{}.ffn_norm"),
    *linear(f"{LAYER}.mlp.gate_proj", "blk.{}.ffn_gate", INNER, WIDTH, MLP_BIAS),
    *linear(f"{LAYER}.mlp.up_proj", "blk.{}.ffn_up", INNER, WIDTH, MLP_BIAS),
    *linear(f"{LAYER}.mlp.down_proj", "blk.{}.ffn_down", WIDTH, INNER, MLP_BIAS),
    norm("model.norm", "output_norm"),
    output(),
)

# Tables of the rotation that old versions saved beside the weights; config.json says what they say.
ROTARY_BUFFERS = r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)"

LLAMA = Family(
    architecture="llama",
    classes=("LlamaForCausalLM", "LLaMAForCausalLM"),
    model_type="llama",
    tensors=TENSORS,
    dropped=ROTARY_BUFFERS,
    parts={**TIED, ATTENTION_BIAS: Flag(ATTENTION_BIAS), MLP_BIAS: Flag(MLP_BIAS)},
    free_head_dim=True,
)
