"""GPT-J, which has no graph of its own in llama.cpp: it is Phi-2's without biases in attention.

Phi-2's graph wants those biases, so they are written as zeros. GPT-J rotates neighbouring dimensions of
a head, Phi-2's graph halves of what is rotated, so rows of queries and keys change places. The GGUF says
which family it was (CLASS_KEY), and an export makes that again.
Sources: transformers' modeling_gptj.py; llama.cpp src/models/phi2.cpp.
"""

from __future__ import annotations

from pigguf.architectures.family import TIED, Family
from pigguf.architectures.gpt2 import NAMES, TANH_GELU
from pigguf.architectures.hparam_rules import HeadDimensions, four_times, own_keys
from pigguf.architectures.hparams import UNTIED
from pigguf.architectures.tensor_rules import (
    INNER,
    QUERIES,
    VOCAB,
    WIDTH,
    Piece,
    TensorRule,
    halves,
    layer_norm,
    linear,
    output,
    query_heads,
    tensor,
)

LAYER = "transformer.h.{}"


def _zeros(gguf: str, size: str) -> TensorRule:
    return TensorRule((), (Piece(f"{gguf}.bias", (size,)),))


TENSORS = (
    tensor("transformer.wte.weight", "token_embd.weight", VOCAB, WIDTH),
    *layer_norm(f"{LAYER}.ln_1", "blk.{}.attn_norm"),
    *linear(f"{LAYER}.attn.q_proj", "blk.{}.attn_q", QUERIES, WIDTH, None, order=halves(query_heads)),
    _zeros("blk.{}.attn_q", QUERIES),
    *linear(f"{LAYER}.attn.k_proj", "blk.{}.attn_k", QUERIES, WIDTH, None, order=halves(query_heads)),
    _zeros("blk.{}.attn_k", QUERIES),
    *linear(f"{LAYER}.attn.v_proj", "blk.{}.attn_v", QUERIES, WIDTH, None),
    _zeros("blk.{}.attn_v", QUERIES),
    *linear(f"{LAYER}.attn.out_proj", "blk.{}.attn_output", WIDTH, QUERIES, None),
    _zeros("blk.{}.attn_output", WIDTH),
    *linear(f"{LAYER}.mlp.fc_in", "blk.{}.ffn_up", INNER, WIDTH),
    *linear(f"{LAYER}.mlp.fc_out", "blk.{}.ffn_down", WIDTH, INNER),
    *layer_norm("transformer.ln_f", "output_norm"),
    output(),
    tensor("lm_head.bias", "output.bias", VOCAB, when=UNTIED),
)

GPTJ = Family(
    architecture="phi2",
    classes=("GPTJForCausalLM",),
    model_type="gptj",
    tensors=TENSORS,
    dropped=r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",
    names=NAMES,
    feed_forward=four_times,
    kv_heads=own_keys,
    norm="layer",
    epsilon=("layer_norm_epsilon", 1e-5),
    parts=TIED,
    only={
        "hidden_act": None,
        "activation_function": (TANH_GELU, "another activation than the tanh form of GELU"),
        "tie_word_embeddings": ((False,), "an output matrix with a bias that is the embedding"),
    },
    rotary=HeadDimensions("rotary_dim", 64),
    folded=True,
    export={"tie_word_embeddings": False},
)
