"""Qwen2 and Qwen2.5: Llama's tensors with biases on queries, keys and values.

Sources: transformers' modeling_qwen2.py; llama.cpp src/models/qwen2.cpp, which rotates halves of a
head as transformers does, so no rows change places.
"""

from __future__ import annotations

from dataclasses import replace

from pigguf.arch.family import Family
from pigguf.arch.llama import LLAMA
from pigguf.config import Config

_ABSENT = ("blk.{}.attn_output.bias", "blk.{}.ffn_gate.bias", "blk.{}.ffn_up.bias", "blk.{}.ffn_down.bias")


def _window(keys: Config) -> int | None:
    """use_sliding_window switches it on for some of the layers; sliding_window is 4096 by default."""
    if not keys.optional("use_sliding_window", bool, False):
        return None
    return keys.optional("sliding_window", int, 4096)


QWEN2 = Family(
    architecture="qwen2",
    classes=("Qwen2ForCausalLM",),
    model_type="qwen2",
    tensors=tuple(replace(rule, rotary=False) for rule in LLAMA.tensors if rule.gguf not in _ABSENT),
    dropped=LLAMA.dropped,
    attention_bias=True,
    mlp_bias=False,
    free_head_dim=False,
    sliding_window=_window,
    export={"use_sliding_window": False},
)
