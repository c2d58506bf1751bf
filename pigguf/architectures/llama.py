"""Llama: LlamaForCausalLM, and the tensor rules of families with Llama's layers.

Vicuna, LongChat, Code Llama, SmolLM2, Yi and DeepSeek-coder are LlamaForCausalLM in transformers and need no
family of their own.

Sources: transformers' modeling_llama.py; llama.cpp src/models/llama.cpp and conversion/llama.py. The graph
rotates queries and keys interleaved and the checkpoint rotate_half, so their rows are permuted. A GGUF may
have no output matrix: the embedding is then used.
"""

from __future__ import annotations

from pigguf.architectures.family import UNTIED_BY_DEFAULT, Family
from pigguf.architectures.hparam_rules import FeatureFlag
from pigguf.architectures.row_permutations import kv_heads, query_heads, rotate_half_to_interleaved
from pigguf.architectures.tensor_rules import (
    HIDDEN_SIZE,
    INTERMEDIATE_SIZE,
    KV_SIZE,
    Q_SIZE,
    VOCAB_SIZE,
    TensorRule,
    linear,
    lm_head,
    norm,
    tensor,
)

ATTENTION_BIAS, MLP_BIAS = "attention_bias", "mlp_bias"

LAYER = "model.layers.{}"


def attention(
    bias: str | None = None, output_bias: str | None = None, *, to_interleaved: bool = False
) -> tuple[TensorRule, ...]:
    """Rules for queries, keys, values and what follows them.

    `bias` and `output_bias` are as `linear` has them; `rotates_neighbours` is of the graph, where the
    checkpoint's heads are rotated in halves.
    """
    queries, keys = (
        (rotate_half_to_interleaved(query_heads), rotate_half_to_interleaved(kv_heads))
        if to_interleaved
        else (None, None)
    )
    return (
        *linear(f"{LAYER}.self_attn.q_proj", "blk.{}.attn_q", Q_SIZE, HIDDEN_SIZE, bias, permutation=queries),
        *linear(f"{LAYER}.self_attn.k_proj", "blk.{}.attn_k", KV_SIZE, HIDDEN_SIZE, bias, permutation=keys),
        *linear(f"{LAYER}.self_attn.v_proj", "blk.{}.attn_v", KV_SIZE, HIDDEN_SIZE, bias),
        *linear(f"{LAYER}.self_attn.o_proj", "blk.{}.attn_output", HIDDEN_SIZE, Q_SIZE, output_bias),
    )


def feed_forward(bias: str | None = None) -> tuple[TensorRule, ...]:
    """Return the rules for a gated feed-forward."""
    return (
        *linear(f"{LAYER}.mlp.gate_proj", "blk.{}.ffn_gate", INTERMEDIATE_SIZE, HIDDEN_SIZE, bias),
        *linear(f"{LAYER}.mlp.up_proj", "blk.{}.ffn_up", INTERMEDIATE_SIZE, HIDDEN_SIZE, bias),
        *linear(f"{LAYER}.mlp.down_proj", "blk.{}.ffn_down", HIDDEN_SIZE, INTERMEDIATE_SIZE, bias),
    )


EMBEDDING = tensor("model.embed_tokens.weight", "token_embd.weight", VOCAB_SIZE, HIDDEN_SIZE)
ATTENTION_NORM = norm(f"{LAYER}.input_layernorm", "blk.{}.attn_norm")
FEED_FORWARD_NORM = norm(f"{LAYER}.post_attention_layernorm", "blk.{}.ffn_norm")
OUTPUT_NORM = norm("model.norm", "output_norm")

TENSORS = (
    EMBEDDING,
    ATTENTION_NORM,
    *attention(ATTENTION_BIAS, ATTENTION_BIAS, to_interleaved=True),
    FEED_FORWARD_NORM,
    *feed_forward(MLP_BIAS),
    OUTPUT_NORM,
    lm_head(),
)

# cos/sin tables and frequencies that old versions saved with the weights; they follow from config.json.
ROTARY_BUFFERS = r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)"

LLAMA = Family(
    architecture="llama",
    hf_classes=("LlamaForCausalLM", "LLaMAForCausalLM"),
    model_type="llama",
    tensor_rules=TENSORS,
    ignored_tensors=ROTARY_BUFFERS,
    optional_features={
        **UNTIED_BY_DEFAULT,
        ATTENTION_BIAS: FeatureFlag(ATTENTION_BIAS),
        MLP_BIAS: FeatureFlag(MLP_BIAS),
    },
    allows_custom_head_dim=True,
)
