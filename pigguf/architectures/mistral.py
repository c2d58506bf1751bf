"""Mistral: Llama without biases and with a sliding window, in llama.cpp's llama graph, which has none.

The window is the one thing that would change in silence, so it bounds the context length. Source:
transformers' configuration_mistral.py, where an absent sliding_window is 4096 and null is none.
"""

from __future__ import annotations

from dataclasses import replace

from pigguf.architectures.family import TIED
from pigguf.architectures.llama import ATTENTION_BIAS, LLAMA, MLP_BIAS
from pigguf.common.config import Config

DEFAULT_WINDOW = 4096


def _window(keys: Config) -> int | None:
    if keys.values.get("sliding_window", DEFAULT_WINDOW) is None:
        return None
    return keys.optional("sliding_window", int, DEFAULT_WINDOW)


MISTRAL = replace(
    LLAMA,
    classes=("MistralForCausalLM",),
    model_type="mistral",
    tensors=tuple(rule for rule in LLAMA.tensors if rule.when not in (ATTENTION_BIAS, MLP_BIAS)),
    parts=TIED,
    sliding_window=_window,
    export={"sliding_window": None},
)
