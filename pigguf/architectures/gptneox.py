"""GPT-NeoX and Pythia: partial rotary (a quarter of a head), parallel attention and feed-forward.

Sources: transformers' modeling_gpt_neox.py; llama.cpp src/models/gptneox.cpp and conversion/gptneox.py.
Checkpoints store the query, key and value of a head together, the graph reads all queries first. transformers
has the exact GELU, llama.cpp its tanh approximation.
"""

from __future__ import annotations

from pigguf.architectures.family import UNTIED_BY_DEFAULT, Family
from pigguf.architectures.hparam_rules import HParamRule, PartialRotary, kv_heads_equal_heads
from pigguf.architectures.row_permutations import ungroup_qkv
from pigguf.architectures.tensor_rules import (
    HIDDEN_SIZE,
    INTERMEDIATE_SIZE,
    QKV_SIZE,
    VOCAB_SIZE,
    layer_norm,
    linear,
    tensor,
)

LAYER = "gpt_neox.layers.{}"
TENSORS = (
    tensor("gpt_neox.embed_in.weight", "token_embd.weight", VOCAB_SIZE, HIDDEN_SIZE),
    *layer_norm(f"{LAYER}.input_layernorm", "blk.{}.attn_norm"),
    *linear(
        f"{LAYER}.attention.query_key_value",
        "blk.{}.attn_qkv",
        QKV_SIZE,
        HIDDEN_SIZE,
        permutation=ungroup_qkv,
    ),
    *linear(f"{LAYER}.attention.dense", "blk.{}.attn_output", HIDDEN_SIZE, HIDDEN_SIZE),
    *layer_norm(f"{LAYER}.post_attention_layernorm", "blk.{}.ffn_norm"),
    *linear(f"{LAYER}.mlp.dense_h_to_4h", "blk.{}.ffn_up", INTERMEDIATE_SIZE, HIDDEN_SIZE),
    *linear(f"{LAYER}.mlp.dense_4h_to_h", "blk.{}.ffn_down", HIDDEN_SIZE, INTERMEDIATE_SIZE),
    *layer_norm("gpt_neox.final_layer_norm", "output_norm"),
    # The graph requires an output matrix in any case.
    tensor("embed_out.weight", "output.weight", VOCAB_SIZE, HIDDEN_SIZE, when="untied"),
    tensor("gpt_neox.embed_in.weight", "output.weight", VOCAB_SIZE, HIDDEN_SIZE, when="!untied"),
)

GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")

GPTNEOX = Family(
    architecture="gptneox",
    hf_classes=("GPTNeoXForCausalLM",),
    model_type="gpt_neox",
    tensor_rules=TENSORS,
    ignored_tensors=r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
    tensor_name_aliases=((r"^lm_head\.", "embed_out."),),
    config_key_aliases={"rope_theta": ("rope_theta", "rotary_emb_base")},
    read_kv_heads=kv_heads_equal_heads,
    norm_type="layer",
    norm_epsilon_key="layer_norm_eps",
    norm_epsilon_default=1e-5,
    optional_features=UNTIED_BY_DEFAULT,
    hparam_rules=(HParamRule("use_parallel_residual", "use_parallel_residual", "bool", True),),
    allowed_values={
        "hidden_act": (GELU, "another activation than GELU"),
        "attention_bias": ((True,), "projections without biases"),
    },
    rotary=PartialRotary(("partial_rotary_factor", "rotary_pct"), 0.25),
)
