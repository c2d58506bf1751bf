"""Phi-3, Phi-3.5 and Phi-4: Llama with queries, keys and values in one matrix, and gate and up in another.

Sources: transformers' modeling_phi3.py; llama.cpp src/models/phi3.cpp, which keeps these matrices, and
conversion/phi.py. The graph has no sliding window (its code for one is disabled), so the window of
Phi-3-mini-4k, 2047, limits the context length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pigguf.architectures.family import UNTIED_BY_DEFAULT, Family
from pigguf.architectures.hparam_rules import PartialRotary, explicit_sliding_window
from pigguf.architectures.hparams import HParams
from pigguf.architectures.llama import (
    ATTENTION_NORM,
    EMBEDDING,
    FEED_FORWARD_NORM,
    LAYER,
    OUTPUT_NORM,
    ROTARY_BUFFERS,
)
from pigguf.architectures.tensor_rules import (
    HIDDEN_SIZE,
    INTERMEDIATE_SIZE,
    Q_SIZE,
    QKV_SIZE,
    TWICE_INTERMEDIATE_SIZE,
    linear,
    lm_head,
)


def _write(hparams: HParams) -> Mapping[str, Any]:
    return {"original_max_position_embeddings": hparams.rope.original_context}


PHI3 = Family(
    architecture="phi3",
    hf_classes=("Phi3ForCausalLM",),
    model_type="phi3",
    tensor_rules=(
        EMBEDDING,
        ATTENTION_NORM,
        *linear(f"{LAYER}.self_attn.qkv_proj", "blk.{}.attn_qkv", QKV_SIZE, HIDDEN_SIZE, None),
        *linear(f"{LAYER}.self_attn.o_proj", "blk.{}.attn_output", HIDDEN_SIZE, Q_SIZE, None),
        FEED_FORWARD_NORM,
        *linear(f"{LAYER}.mlp.gate_up_proj", "blk.{}.ffn_up", TWICE_INTERMEDIATE_SIZE, HIDDEN_SIZE, None),
        *linear(f"{LAYER}.mlp.down_proj", "blk.{}.ffn_down", HIDDEN_SIZE, INTERMEDIATE_SIZE, None),
        OUTPUT_NORM,
        lm_head(),
    ),
    ignored_tensors=ROTARY_BUFFERS,
    norm_epsilon_key="rms_norm_eps",
    norm_epsilon_default=1e-5,
    optional_features=UNTIED_BY_DEFAULT,
    allowed_values={"attention_bias": ((False,), "biases")},
    rotary=PartialRotary(),
    read_sliding_window=explicit_sliding_window,
    export_config_from_hparams=_write,
    export_config={"sliding_window": None},
)
