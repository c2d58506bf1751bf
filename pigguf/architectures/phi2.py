"""Phi-1, Phi-1.5 and Phi-2: parallel attention and feed-forward with one norm, biases everywhere.

Sources: transformers' modeling_phi.py; llama.cpp src/models/phi2.cpp and conversion/phi.py.
"""

from __future__ import annotations

from pigguf.architectures.family import UNTIED_BY_DEFAULT, Family
from pigguf.architectures.hparam_rules import PartialRotary
from pigguf.architectures.hparams import UNTIED
from pigguf.architectures.tensor_rules import (
    HIDDEN_SIZE,
    INTERMEDIATE_SIZE,
    KV_SIZE,
    Q_SIZE,
    VOCAB_SIZE,
    layer_norm,
    linear,
    lm_head,
    tensor,
)

LAYER = "model.layers.{}"
TENSORS = (
    tensor("model.embed_tokens.weight", "token_embd.weight", VOCAB_SIZE, HIDDEN_SIZE),
    *layer_norm(f"{LAYER}.input_layernorm", "blk.{}.attn_norm"),
    *linear(f"{LAYER}.self_attn.q_proj", "blk.{}.attn_q", Q_SIZE, HIDDEN_SIZE),
    *linear(f"{LAYER}.self_attn.k_proj", "blk.{}.attn_k", KV_SIZE, HIDDEN_SIZE),
    *linear(f"{LAYER}.self_attn.v_proj", "blk.{}.attn_v", KV_SIZE, HIDDEN_SIZE),
    *linear(f"{LAYER}.self_attn.dense", "blk.{}.attn_output", HIDDEN_SIZE, Q_SIZE),
    *linear(f"{LAYER}.mlp.fc1", "blk.{}.ffn_up", INTERMEDIATE_SIZE, HIDDEN_SIZE),
    *linear(f"{LAYER}.mlp.fc2", "blk.{}.ffn_down", HIDDEN_SIZE, INTERMEDIATE_SIZE),
    *layer_norm("model.final_layernorm", "output_norm"),
    lm_head(),
    tensor("lm_head.bias", "output.bias", VOCAB_SIZE, when=UNTIED),
)

PHI2 = Family(
    architecture="phi2",
    hf_classes=("PhiForCausalLM",),
    model_type="phi",
    tensor_rules=TENSORS,
    ignored_tensors=r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
    norm_type="layer",
    norm_epsilon_key="layer_norm_eps",
    norm_epsilon_default=1e-5,
    optional_features=UNTIED_BY_DEFAULT,
    allowed_values={
        "hidden_act": (("gelu_new", "gelu_pytorch_tanh", "gelu_fast"), "another activation than GELU"),
        "tie_word_embeddings": ((False,), "the embedding as output matrix, which has a bias"),
        "qk_layernorm": ((False,), "norms of queries and keys"),
    },
    rotary=PartialRotary(("partial_rotary_factor",), 0.5),
    export_config={"tie_word_embeddings": False},
)
