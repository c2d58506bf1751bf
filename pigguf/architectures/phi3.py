"""Phi-3, Phi-3.5 and Phi-4: Llama with queries, keys and values in one matrix, and gate and up in another.

Sources: transformers' modeling_phi3.py; llama.cpp src/models/phi3.cpp, which keeps them so, and
conversion/phi.py. The graph has no sliding window (its code for one is switched off), so that of
Phi-3-mini-4k, 2047, bounds the context.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pigguf.architectures.family import TIED, Family
from pigguf.architectures.hparam_rules import HeadPart, stated_window
from pigguf.architectures.hparams import HParams
from pigguf.architectures.llama import (
    ATTENTION_NORM,
    EMBEDDING,
    FEED_FORWARD_NORM,
    LAYER,
    OUTPUT_NORM,
    ROTARY_BUFFERS,
)
from pigguf.architectures.tensor_rules import INNER, QKV, QUERIES, TWICE_INNER, WIDTH, linear, output


def _write(hparams: HParams) -> Mapping[str, Any]:
    return {"original_max_position_embeddings": hparams.rope.original_context}


PHI3 = Family(
    architecture="phi3",
    classes=("Phi3ForCausalLM",),
    model_type="phi3",
    tensors=(
        EMBEDDING,
        ATTENTION_NORM,
        *linear(f"{LAYER}.self_attn.qkv_proj", "blk.{}.attn_qkv", QKV, WIDTH, None),
        *linear(f"{LAYER}.self_attn.o_proj", "blk.{}.attn_output", WIDTH, QUERIES, None),
        FEED_FORWARD_NORM,
        *linear(f"{LAYER}.mlp.gate_up_proj", "blk.{}.ffn_up", TWICE_INNER, WIDTH, None),
        *linear(f"{LAYER}.mlp.down_proj", "blk.{}.ffn_down", WIDTH, INNER, None),
        OUTPUT_NORM,
        output(),
    ),
    dropped=ROTARY_BUFFERS,
    epsilon=("rms_norm_eps", 1e-5),
    parts=TIED,
    only={"attention_bias": ((False,), "biases")},
    rotary=HeadPart(),
    sliding_window=stated_window,
    write=_write,
    export={"sliding_window": None},
)
