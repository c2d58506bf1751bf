"""OLMo 2: Llama with its norms behind attention and feed-forward, and norms over all queries and keys.

Sources: transformers' modeling_olmo2.py; llama.cpp src/models/olmo2.cpp, which wants an output matrix.
"""

from __future__ import annotations

from pigguf.architectures.family import TIED, Family
from pigguf.architectures.llama import (
    EMBEDDING,
    LAYER,
    OUTPUT_NORM,
    ROTARY_BUFFERS,
    attention,
    feed_forward,
)
from pigguf.architectures.tensor_rules import KEYS, QUERIES, norm, output

OLMO2 = Family(
    architecture="olmo2",
    classes=("Olmo2ForCausalLM",),
    model_type="olmo2",
    tensors=(
        EMBEDDING,
        *attention(),
        norm(f"{LAYER}.self_attn.q_norm", "blk.{}.attn_q_norm", QUERIES),
        norm(f"{LAYER}.self_attn.k_norm", "blk.{}.attn_k_norm", KEYS),
        norm(f"{LAYER}.post_attention_layernorm", "blk.{}.post_attention_norm"),
        *feed_forward(),
        norm(f"{LAYER}.post_feedforward_layernorm", "blk.{}.post_ffw_norm"),
        OUTPUT_NORM,
        output(),
    ),
    dropped=ROTARY_BUFFERS,
    epsilon=("rms_norm_eps", 1e-5),
    parts=TIED,
    only={
        "attention_bias": ((False,), "biases"),
        "tie_word_embeddings": ((False,), "the embedding as output matrix"),
    },
)
