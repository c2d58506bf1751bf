"""GPT-J, which has no graph in llama.cpp and runs on Phi-2's, without biases in attention.

Phi-2's graph requires these biases, so they are written as zeros. GPT-J rotates interleaved and Phi-2's graph
rotate_half, so the rows of queries and keys are permuted. The GGUF has HF_CLASS_KEY, by which an export
becomes a GPT-J again. Sources: transformers' modeling_gptj.py; llama.cpp src/models/phi2.cpp.
"""

from __future__ import annotations

from pigguf.architectures.family import UNTIED_BY_DEFAULT, Family
from pigguf.architectures.gpt2 import GPT2_CONFIG_KEYS, TANH_GELU
from pigguf.architectures.hparam_rules import RotaryDimensions, four_times_hidden_size, kv_heads_equal_heads
from pigguf.architectures.hparams import UNTIED
from pigguf.architectures.row_permutations import interleaved_to_rotate_half, query_heads
from pigguf.architectures.tensor_rules import (
    HIDDEN_SIZE,
    INTERMEDIATE_SIZE,
    Q_SIZE,
    VOCAB_SIZE,
    TensorPattern,
    TensorRule,
    layer_norm,
    linear,
    lm_head,
    tensor,
)

LAYER = "transformer.h.{}"


def _zero_bias(gguf: str, size: str) -> TensorRule:
    """Return the rule for a bias of zeros, which the checkpoint does not have."""
    return TensorRule((), (TensorPattern(f"{gguf}.bias", (size,)),))


TENSORS = (
    tensor("transformer.wte.weight", "token_embd.weight", VOCAB_SIZE, HIDDEN_SIZE),
    *layer_norm(f"{LAYER}.ln_1", "blk.{}.attn_norm"),
    *linear(
        f"{LAYER}.attn.q_proj",
        "blk.{}.attn_q",
        Q_SIZE,
        HIDDEN_SIZE,
        None,
        permutation=interleaved_to_rotate_half(query_heads),
    ),
    _zero_bias("blk.{}.attn_q", Q_SIZE),
    *linear(
        f"{LAYER}.attn.k_proj",
        "blk.{}.attn_k",
        Q_SIZE,
        HIDDEN_SIZE,
        None,
        permutation=interleaved_to_rotate_half(query_heads),
    ),
    _zero_bias("blk.{}.attn_k", Q_SIZE),
    *linear(f"{LAYER}.attn.v_proj", "blk.{}.attn_v", Q_SIZE, HIDDEN_SIZE, None),
    _zero_bias("blk.{}.attn_v", Q_SIZE),
    *linear(f"{LAYER}.attn.out_proj", "blk.{}.attn_output", HIDDEN_SIZE, Q_SIZE, None),
    _zero_bias("blk.{}.attn_output", HIDDEN_SIZE),
    *linear(f"{LAYER}.mlp.fc_in", "blk.{}.ffn_up", INTERMEDIATE_SIZE, HIDDEN_SIZE),
    *linear(f"{LAYER}.mlp.fc_out", "blk.{}.ffn_down", HIDDEN_SIZE, INTERMEDIATE_SIZE),
    *layer_norm("transformer.ln_f", "output_norm"),
    lm_head(),
    tensor("lm_head.bias", "output.bias", VOCAB_SIZE, when=UNTIED),
)

GPTJ = Family(
    architecture="phi2",
    hf_classes=("GPTJForCausalLM",),
    model_type="gptj",
    tensor_rules=TENSORS,
    ignored_tensors=r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",
    config_key_aliases=GPT2_CONFIG_KEYS,
    default_intermediate_size=four_times_hidden_size,
    read_kv_heads=kv_heads_equal_heads,
    norm_type="layer",
    norm_epsilon_key="layer_norm_epsilon",
    norm_epsilon_default=1e-5,
    optional_features=UNTIED_BY_DEFAULT,
    allowed_values={
        "hidden_act": None,
        "activation_function": (TANH_GELU, "another activation than the tanh approximation of GELU"),
        "tie_word_embeddings": ((False,), "the embedding as output matrix, which has a bias"),
    },
    rotary=RotaryDimensions("rotary_dim", 64),
    runs_as_other_architecture=True,
    export_config={"tie_word_embeddings": False},
)
