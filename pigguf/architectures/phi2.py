"""Phi-1, Phi-1.5 and Phi-2: attention and feed-forward side by side behind one norm, biases everywhere.

Sources: transformers' modeling_phi.py; llama.cpp src/models/phi2.cpp and conversion/phi.py.
"""

from __future__ import annotations

from pigguf.architectures.family import TIED, Family
from pigguf.architectures.hparam_rules import HeadPart
from pigguf.architectures.hparams import UNTIED
from pigguf.architectures.tensor_rules import (
    INNER,
    KEYS,
    QUERIES,
    VOCAB,
    WIDTH,
    layer_norm,
    linear,
    output,
    tensor,
)

LAYER = "model.layers.{}"
TENSORS = (
    tensor("model.embed_tokens.weight", "token_embd.weight", VOCAB, WIDTH),
    *layer_norm(f"{LAYER}.input_layernorm", "blk.{}.attn_norm"),
    *linear(f"{LAYER}.self_attn.q_proj", "blk.{}.attn_q", QUERIES, WIDTH),
    *linear(f"{LAYER}.self_attn.k_proj", "blk.{}.attn_k", KEYS, WIDTH),
    *linear(f"{LAYER}.self_attn.v_proj", "blk.{}.attn_v", KEYS, WIDTH),
    *linear(f"{LAYER}.self_attn.dense", "blk.{}.attn_output", WIDTH, QUERIES),
    *linear(f"{LAYER}.mlp.fc1", "blk.{}.ffn_up", INNER, WIDTH),
    *linear(f"{LAYER}.mlp.fc2", "blk.{}.ffn_down", WIDTH, INNER),
    *layer_norm("model.final_layernorm", "output_norm"),
    output(),
    tensor("lm_head.bias", "output.bias", VOCAB, when=UNTIED),
)

PHI2 = Family(
    architecture="phi2",
    classes=("PhiForCausalLM",),
    model_type="phi",
    tensors=TENSORS,
    dropped=r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
    norm="layer",
    epsilon=("layer_norm_eps", 1e-5),
    parts=TIED,
    only={
        "hidden_act": (("gelu_new", "gelu_pytorch_tanh", "gelu_fast"), "another activation than GELU"),
        "tie_word_embeddings": ((False,), "an output matrix with a bias that is the embedding"),
        "qk_layernorm": ((False,), "norms over queries and keys"),
    },
    rotary=HeadPart(("partial_rotary_factor",), 0.5),
    export={"tie_word_embeddings": False},
)
