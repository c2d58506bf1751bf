"""Llama: LlamaForCausalLM and what took its shape (Vicuna, Code Llama, SmolLM2, Yi, ...).

Sources: transformers' modeling_llama.py; llama.cpp src/models/llama.cpp and conversion/llama.py.
Queries and keys are rotated in neighbouring pairs there and in halves of a head here, so their rows
change places. The output matrix may be absent from a GGUF: the embedding then serves as one.
"""

from __future__ import annotations

from pigguf.arch.family import INNER, KEYS, QUERIES, VOCAB, WIDTH, Family, TensorRule
from pigguf.config import Config

TENSORS = (
    TensorRule("model.embed_tokens.weight", "token_embd.weight", (VOCAB, WIDTH)),
    TensorRule("model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight", (WIDTH,)),
    TensorRule(
        "model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight", (QUERIES, WIDTH), rotary=True
    ),
    TensorRule("model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight", (KEYS, WIDTH), rotary=True),
    TensorRule("model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight", (KEYS, WIDTH)),
    TensorRule("model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight", (WIDTH, QUERIES)),
    TensorRule(
        "model.layers.{}.self_attn.q_proj.bias",
        "blk.{}.attn_q.bias",
        (QUERIES,),
        "attention_bias",
        rotary=True,
    ),
    TensorRule(
        "model.layers.{}.self_attn.k_proj.bias", "blk.{}.attn_k.bias", (KEYS,), "attention_bias", rotary=True
    ),
    TensorRule("model.layers.{}.self_attn.v_proj.bias", "blk.{}.attn_v.bias", (KEYS,), "attention_bias"),
    TensorRule(
        "model.layers.{}.self_attn.o_proj.bias", "blk.{}.attn_output.bias", (WIDTH,), "attention_bias"
    ),
    TensorRule("model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight", (WIDTH,)),
    TensorRule("model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight", (INNER, WIDTH)),
    TensorRule("model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight", (INNER, WIDTH)),
    TensorRule("model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight", (WIDTH, INNER)),
    TensorRule("model.layers.{}.mlp.gate_proj.bias", "blk.{}.ffn_gate.bias", (INNER,), "mlp_bias"),
    TensorRule("model.layers.{}.mlp.up_proj.bias", "blk.{}.ffn_up.bias", (INNER,), "mlp_bias"),
    TensorRule("model.layers.{}.mlp.down_proj.bias", "blk.{}.ffn_down.bias", (WIDTH,), "mlp_bias"),
    TensorRule("model.norm.weight", "output_norm.weight", (WIDTH,)),
    TensorRule("lm_head.weight", "output.weight", (VOCAB, WIDTH), "untied"),
)

# Tables of the rotation that old versions saved beside the weights; config.json says what they say.
ROTARY_BUFFERS = r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)"


def _no_window(keys: Config) -> None:
    """transformers' Llama looks at no sliding_window."""


LLAMA = Family(
    architecture="llama",
    classes=("LlamaForCausalLM", "LLaMAForCausalLM"),
    model_type="llama",
    tensors=TENSORS,
    dropped=ROTARY_BUFFERS,
    attention_bias="config",
    mlp_bias="config",
    free_head_dim=True,
    sliding_window=_no_window,
)
