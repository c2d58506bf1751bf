"""OLMo 2: Llama with norms after attention and feed-forward, and norms over all queries and keys.

Sources: transformers' modeling_olmo2.py; llama.cpp src/models/olmo2.cpp, which requires an output matrix.
"""

from __future__ import annotations

from pigguf.architectures.family import UNTIED_BY_DEFAULT, Family
from pigguf.architectures.llama import (
    EMBEDDING,
    LAYER,
    OUTPUT_NORM,
    ROTARY_BUFFERS,
    attention,
    feed_forward,
)
from pigguf.architectures.tensor_rules import KV_SIZE, Q_SIZE, lm_head, norm

OLMO2 = Family(
    architecture="olmo2",
    hf_classes=("Olmo2ForCausalLM",),
    model_type="olmo2",
    tensor_rules=(
        EMBEDDING,
        *attention(),
        norm(f"{LAYER}.self_attn.q_norm", "blk.{}.attn_q_norm", Q_SIZE),
        norm(f"{LAYER}.self_attn.k_norm", "blk.{}.attn_k_norm", KV_SIZE),
        norm(f"{LAYER}.post_attention_layernorm", "blk.{}.post_attention_norm"),
        *feed_forward(),
        norm(f"{LAYER}.post_feedforward_layernorm", "blk.{}.post_ffw_norm"),
        OUTPUT_NORM,
        lm_head(),
    ),
    ignored_tensors=ROTARY_BUFFERS,
    norm_epsilon_key="rms_norm_eps",
    norm_epsilon_default=1e-5,
    optional_features=UNTIED_BY_DEFAULT,
    allowed_values={
        "attention_bias": ((False,), "biases"),
        "tie_word_embeddings": ((False,), "the embedding as output matrix"),
    },
)
