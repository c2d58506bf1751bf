"""Qwen2 and Qwen2.5: Llama's tensors with biases on queries, keys and values.

Sources: transformers' modeling_qwen2.py; llama.cpp src/models/qwen2.cpp, which rotates rotate_half as
transformers does, so no rows are permuted.
"""

from __future__ import annotations

from pigguf.architectures.family import Family
from pigguf.architectures.llama import (
    ATTENTION_NORM,
    EMBEDDING,
    FEED_FORWARD_NORM,
    OUTPUT_NORM,
    ROTARY_BUFFERS,
    attention,
    feed_forward,
)
from pigguf.architectures.tensor_rules import lm_head
from pigguf.common.json_config import JsonConfig

TENSORS = (
    EMBEDDING,
    ATTENTION_NORM,
    *attention(""),
    FEED_FORWARD_NORM,
    *feed_forward(),
    OUTPUT_NORM,
    lm_head(),
)


def qwen_sliding_window(keys: JsonConfig) -> int | None:
    """Return the sliding window, 4096 by default, if use_sliding_window switches it on."""
    if not keys.optional("use_sliding_window", bool, False):
        return None
    return keys.optional("sliding_window", int, 4096)


QWEN2 = Family(
    architecture="qwen2",
    hf_classes=("Qwen2ForCausalLM",),
    model_type="qwen2",
    tensor_rules=TENSORS,
    ignored_tensors=ROTARY_BUFFERS,
    read_sliding_window=qwen_sliding_window,
    export_config={"use_sliding_window": False},
)
