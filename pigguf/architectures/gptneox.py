"""GPT-NeoX and Pythia: a quarter of each head rotated, attention and feed-forward side by side.

Sources: transformers' modeling_gpt_neox.py; llama.cpp src/models/gptneox.cpp and conversion/gptneox.py.
Queries, keys and values of a head lie together here, all queries first there. The activation is the
exact GELU here and its tanh form there, which is what llama.cpp has.
"""

from __future__ import annotations

from pigguf.architectures.family import TIED, Family
from pigguf.architectures.hparam_rules import HeadPart, KeyRule, own_keys
from pigguf.architectures.tensor_rules import (
    INNER,
    QKV,
    VOCAB,
    WIDTH,
    grouped_qkv,
    layer_norm,
    linear,
    tensor,
)

LAYER = "gpt_neox.layers.{}"
TENSORS = (
    tensor("gpt_neox.embed_in.weight", "token_embd.weight", VOCAB, WIDTH),
    *layer_norm(f"{LAYER}.input_layernorm", "blk.{}.attn_norm"),
    *linear(f"{LAYER}.attention.query_key_value", "blk.{}.attn_qkv", QKV, WIDTH, order=grouped_qkv),
    *linear(f"{LAYER}.attention.dense", "blk.{}.attn_output", WIDTH, WIDTH),
    *layer_norm(f"{LAYER}.post_attention_layernorm", "blk.{}.ffn_norm"),
    *linear(f"{LAYER}.mlp.dense_h_to_4h", "blk.{}.ffn_up", INNER, WIDTH),
    *linear(f"{LAYER}.mlp.dense_4h_to_h", "blk.{}.ffn_down", WIDTH, INNER),
    *layer_norm("gpt_neox.final_layer_norm", "output_norm"),
    # The graph wants an output matrix in any case.
    tensor("embed_out.weight", "output.weight", VOCAB, WIDTH, when="untied"),
    tensor("gpt_neox.embed_in.weight", "output.weight", VOCAB, WIDTH, when="!untied"),
)

GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")

GPTNEOX = Family(
    architecture="gptneox",
    classes=("GPTNeoXForCausalLM",),
    model_type="gpt_neox",
    tensors=TENSORS,
    dropped=r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
    renamed=((r"^lm_head\.", "embed_out."),),
    names={"rope_theta": ("rope_theta", "rotary_emb_base")},
    kv_heads=own_keys,
    norm="layer",
    epsilon=("layer_norm_eps", 1e-5),
    parts=TIED,
    keys=(KeyRule("use_parallel_residual", "use_parallel_residual", "bool", True),),
    only={
        "hidden_act": (GELU, "another activation than GELU"),
        "attention_bias": ((True,), "projections without biases"),
    },
    rotary=HeadPart(("partial_rotary_factor", "rotary_pct"), 0.25),
)
