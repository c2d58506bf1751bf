"""Granite: Llama with multipliers for embeddings, attention, residuals and logits.

Sources: transformers' modeling_granite.py; llama.cpp src/models/granite.cpp and conversion/granite.py. Logits
are divided by their scale on both sides.
"""

from __future__ import annotations

from dataclasses import replace

from pigguf.architectures.hparam_rules import HParamRule
from pigguf.architectures.llama import LLAMA

GRANITE = replace(
    LLAMA,
    architecture="granite",
    hf_classes=("GraniteForCausalLM",),
    model_type="granite",
    hparam_rules=(
        HParamRule("embedding_multiplier", "embedding_scale", "f32", 1.0),
        HParamRule("attention_multiplier", "attention.scale", "f32", 1.0),
        HParamRule("residual_multiplier", "residual_scale", "f32", 1.0),
        HParamRule("logits_scaling", "logit_scale", "f32", 1.0),
    ),
    allows_custom_head_dim=False,
)
