"""Qwen2 and Qwen2.5: Llama's tensors with biases on queries, keys and values.

Sources: transformers' modeling_qwen2.py; llama.cpp src/models/qwen2.cpp, which rotates halves of a
head as transformers does, so no rows change places.
"""

from __future__ import annotations

from pigguf.arch.family import Family
from pigguf.arch.llama import EMBEDDING, LAYER, ROTARY_BUFFERS
from pigguf.arch.table import INNER, KEYS, QUERIES, WIDTH, linear, norm, output
from pigguf.config import Config

TENSORS = (
    EMBEDDING,
    norm(f"{LAYER}.input_layernorm", "blk.{}.attn_norm"),
    *linear(f"{LAYER}.self_attn.q_proj", "blk.{}.attn_q", QUERIES, WIDTH),
    *linear(f"{LAYER}.self_attn.k_proj", "blk.{}.attn_k", KEYS, WIDTH),
    *linear(f"{LAYER}.self_attn.v_proj", "blk.{}.attn_v", KEYS, WIDTH),
    *linear(f"{LAYER}.self_attn.o_proj", "blk.{}.attn_output", WIDTH, QUERIES, None),
    norm(f"{LAYER}.post_attention_layernorm", "blk.{}.ffn_norm"),
    *linear(f"{LAYER}.mlp.gate_proj", "blk.{}.ffn_gate", INNER, WIDTH, None),
    *linear(f"{LAYER}.mlp.up_proj", "blk.{}.ffn_up", INNER, WIDTH, None),
    *linear(f"{LAYER}.mlp.down_proj", "blk.{}.ffn_down", WIDTH, INNER, None),
    norm("model.norm", "output_norm"),
    output(),
)


def window(keys: Config) -> int | None:
    """use_sliding_window switches it on for some of the layers; sliding_window is 4096 by default."""
    if not keys.optional("use_sliding_window", bool, False):
        return None
    return keys.optional("sliding_window", int, 4096)


QWEN2 = Family(
    architecture="qwen2",
    classes=("Qwen2ForCausalLM",),
    model_type="qwen2",
    tensors=TENSORS,
    dropped=ROTARY_BUFFERS,
    sliding_window=window,
    export={"use_sliding_window": False},
)
