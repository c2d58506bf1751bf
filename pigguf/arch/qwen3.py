"""Qwen3: Qwen2 without biases, with a norm over each head of queries and keys.

Sources: transformers' modeling_qwen3.py; llama.cpp src/models/qwen3.cpp.
"""

from __future__ import annotations

from pigguf.arch.family import TIED, Family
from pigguf.arch.keys import Flag
from pigguf.arch.llama import EMBEDDING, LAYER, ROTARY_BUFFERS
from pigguf.arch.qwen2 import window
from pigguf.arch.table import HEAD, INNER, KEYS, QUERIES, WIDTH, linear, norm, output

ATTENTION_BIAS = "attention_bias"

TENSORS = (
    EMBEDDING,
    norm(f"{LAYER}.input_layernorm", "blk.{}.attn_norm"),
    *linear(f"{LAYER}.self_attn.q_proj", "blk.{}.attn_q", QUERIES, WIDTH, ATTENTION_BIAS),
    norm(f"{LAYER}.self_attn.q_norm", "blk.{}.attn_q_norm", HEAD),
    *linear(f"{LAYER}.self_attn.k_proj", "blk.{}.attn_k", KEYS, WIDTH, ATTENTION_BIAS),
    norm(f"{LAYER}.self_attn.k_norm", "blk.{}.attn_k_norm", HEAD),
    *linear(f"{LAYER}.self_attn.v_proj", "blk.{}.attn_v", KEYS, WIDTH, ATTENTION_BIAS),
    *linear(f"{LAYER}.self_attn.o_proj", "blk.{}.attn_output", WIDTH, QUERIES, ATTENTION_BIAS),
    norm(f"{LAYER}.post_attention_layernorm", "blk.{}.ffn_norm"),
    *linear(f"{LAYER}.mlp.gate_proj", "blk.{}.ffn_gate", INNER, WIDTH, None),
    *linear(f"{LAYER}.mlp.up_proj", "blk.{}.ffn_up", INNER, WIDTH, None),
    *linear(f"{LAYER}.mlp.down_proj", "blk.{}.ffn_down", WIDTH, INNER, None),
    norm("model.norm", "output_norm"),
    output(),
)

QWEN3 = Family(
    architecture="qwen3",
    classes=("Qwen3ForCausalLM",),
    model_type="qwen3",
    tensors=TENSORS,
    dropped=ROTARY_BUFFERS,
    defaults={"head_dim": 128},
    parts={**TIED, ATTENTION_BIAS: Flag(ATTENTION_BIAS)},
    free_head_dim=True,
    sliding_window=window,
    export={"use_sliding_window": False},
)
