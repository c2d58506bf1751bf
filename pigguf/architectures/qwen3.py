"""Qwen3: Qwen2 without biases, with a norm of each head of queries and keys.

Sources: transformers' modeling_qwen3.py; llama.cpp src/models/qwen3.cpp.
"""

from __future__ import annotations

from pigguf.architectures.family import UNTIED_BY_DEFAULT, Family
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
from pigguf.architectures.qwen2 import qwen_sliding_window
from pigguf.architectures.tensor_rules import HEAD_DIM, lm_head, norm

TENSORS = (
    EMBEDDING,
    ATTENTION_NORM,
    *attention(None, None),
    norm(f"{LAYER}.self_attn.q_norm", "blk.{}.attn_q_norm", HEAD_DIM),
    norm(f"{LAYER}.self_attn.k_norm", "blk.{}.attn_k_norm", HEAD_DIM),
    FEED_FORWARD_NORM,
    *feed_forward(),
    OUTPUT_NORM,
    lm_head(),
)

QWEN3 = Family(
    architecture="qwen3",
    hf_classes=("Qwen3ForCausalLM",),
    model_type="qwen3",
    tensor_rules=TENSORS,
    ignored_tensors=ROTARY_BUFFERS,
    config_defaults={"head_dim": 128},
    optional_features=UNTIED_BY_DEFAULT,
    allowed_values={"attention_bias": ((False,), "attention with biases")},
    allows_custom_head_dim=True,
    read_sliding_window=qwen_sliding_window,
    export_config={"use_sliding_window": False},
)
