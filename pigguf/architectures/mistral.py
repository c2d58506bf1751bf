"""Mistral: Llama without biases and with a sliding window, which llama.cpp's llama graph does not have.

Past the window the graph would compute something else without a warning, so the window limits the context
length. Source: transformers' configuration_mistral.py: a missing sliding_window is 4096, null is none.
"""

from __future__ import annotations

from dataclasses import replace

from pigguf.architectures.family import UNTIED_BY_DEFAULT
from pigguf.architectures.llama import ATTENTION_BIAS, LLAMA, MLP_BIAS
from pigguf.common.json_config import JsonConfig

DEFAULT_WINDOW = 4096


def _window(keys: JsonConfig) -> int | None:
    if keys.values.get("sliding_window", DEFAULT_WINDOW) is None:
        return None
    return keys.optional("sliding_window", int, DEFAULT_WINDOW)


MISTRAL = replace(
    LLAMA,
    hf_classes=("MistralForCausalLM",),
    model_type="mistral",
    tensor_rules=tuple(rule for rule in LLAMA.tensor_rules if rule.when not in (ATTENTION_BIAS, MLP_BIAS)),
    optional_features=UNTIED_BY_DEFAULT,
    read_sliding_window=_window,
    export_config={"sliding_window": None},
)
