"""Llama: LlamaForCausalLM and what took its shape, which needs nothing of its own here.

Vicuna, LongChat, Code Llama, SmolLM2, Yi and DeepSeek-coder are LlamaForCausalLM to transformers and so
they are here. What has a class of its own but Llama's layers builds its table from the functions below.

Sources: transformers' modeling_llama.py; llama.cpp src/models/llama.cpp and conversion/llama.py.
Queries and keys are rotated in neighbouring pairs there and in halves of a head here, so their rows
change places. The output matrix may be absent from a GGUF: the embedding then serves as one.
"""

from __future__ import annotations

from pigguf.architectures.family import TIED, Family
from pigguf.architectures.hparam_rules import Flag
from pigguf.architectures.tensor_rules import (
    INNER,
    KEYS,
    QUERIES,
    VOCAB,
    WIDTH,
    TensorRule,
    key_heads,
    linear,
    neighbours,
    norm,
    output,
    query_heads,
    tensor,
)

ATTENTION_BIAS, MLP_BIAS = "attention_bias", "mlp_bias"

LAYER = "model.layers.{}"


def attention(
    bias: str | None = None, output_bias: str | None = None, *, rotates_neighbours: bool = False
) -> tuple[TensorRule, ...]:
    """Rules for queries, keys, values and what follows them.

    `bias` and `output_bias` are as `linear` has them; `rotates_neighbours` is of the graph, where the
    checkpoint's heads are rotated in halves.
    """
    queries, keys = (neighbours(query_heads), neighbours(key_heads)) if rotates_neighbours else (None, None)
    return (
        *linear(f"{LAYER}.self_attn.q_proj", "blk.{}.attn_q", QUERIES, WIDTH, bias, order=queries),
        *linear(f"{LAYER}.self_attn.k_proj", "blk.{}.attn_k", KEYS, WIDTH, bias, order=keys),
        *linear(f"{LAYER}.self_attn.v_proj", "blk.{}.attn_v", KEYS, WIDTH, bias),
        *linear(f"{LAYER}.self_attn.o_proj", "blk.{}.attn_output", WIDTH, QUERIES, output_bias),
    )


def feed_forward(bias: str | None = None) -> tuple[TensorRule, ...]:
    """Rules for a feed-forward with a gate."""
    return (
        *linear(f"{LAYER}.mlp.gate_proj", "blk.{}.ffn_gate", INNER, WIDTH, bias),
        *linear(f"{LAYER}.mlp.up_proj", "blk.{}.ffn_up", INNER, WIDTH, bias),
        *linear(f"{LAYER}.mlp.down_proj", "blk.{}.ffn_down", WIDTH, INNER, bias),
    )


EMBEDDING = tensor("model.embed_tokens.weight", "token_embd.weight", VOCAB, WIDTH)
ATTENTION_NORM = norm(f"{LAYER}.input_layernorm", "blk.{}.attn_norm")
FEED_FORWARD_NORM = norm(f"{LAYER}.post_attention_layernorm", "blk.{}.ffn_norm")
OUTPUT_NORM = norm("model.norm", "output_norm")

TENSORS = (
    EMBEDDING,
    ATTENTION_NORM,
    *attention(ATTENTION_BIAS, ATTENTION_BIAS, rotates_neighbours=True),
    FEED_FORWARD_NORM,
    *feed_forward(MLP_BIAS),
    OUTPUT_NORM,
    output(),
)

# Tables of the rotation that old versions saved beside the weights; config.json says what they say.
ROTARY_BUFFERS = r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)"

LLAMA = Family(
    architecture="llama",
    classes=("LlamaForCausalLM", "LLaMAForCausalLM"),
    model_type="llama",
    tensors=TENSORS,
    dropped=ROTARY_BUFFERS,
    parts={**TIED, ATTENTION_BIAS: Flag(ATTENTION_BIAS), MLP_BIAS: Flag(MLP_BIAS)},
    free_head_dim=True,
)
