"""Qwen3: Qwen2 without biases, with a norm over each head of queries and keys.

Sources: transformers' modeling_qwen3.py; llama.cpp src/models/qwen3.cpp.
"""

from __future__ import annotations

from pigguf.architectures.family import TIED, Family
from pigguf.architectures.llama import (
    ATTENTION_NORM,
    EMBEDDING,
    FEED_FORWARD_NORM,
    LAYER,
    OUTPUT_NORM,
    ROTARY_BUFFERS,
    attention,
    feed_forward,
)
from pigguf.architectures.qwen2 import window
from pigguf.architectures.tensor_rules import HEAD, norm, output

TENSORS = (
    EMBEDDING,
    ATTENTION_NORM,
    *attention(None, None),
    norm(f"{LAYER}.self_attn.q_norm", "blk.{}.attn_q_norm", HEAD),
    norm(f"{LAYER}.self_attn.k_norm", "blk.{}.attn_k_norm", HEAD),
    FEED_FORWARD_NORM,
    *feed_forward(),
    OUTPUT_NORM,
    output(),
)

QWEN3 = Family(
    architecture="qwen3",
    classes=("Qwen3ForCausalLM",),
    model_type="qwen3",
    tensors=TENSORS,
    dropped=ROTARY_BUFFERS,
    defaults={"head_dim": 128},
    parts=TIED,
    only={"attention_bias": ((False,), "attention with biases")},
    free_head_dim=True,
    sliding_window=window,
    export={"use_sliding_window": False},
)
