"""MPT: ALiBi, norms and projections without biases, one matrix for queries, keys and values.

Sources: transformers' modeling_mpt.py, which has only ALiBi; llama.cpp src/models/mpt.cpp and
conversion/mpt.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pigguf.architectures.family import NOT_COMPUTED_HINT, TIED_BY_DEFAULT, Family
from pigguf.architectures.hparam_rules import HParamRule, four_times_hidden_size, kv_heads_equal_heads
from pigguf.architectures.hparams import HParams
from pigguf.architectures.tensor_rules import (
    HIDDEN_SIZE,
    INTERMEDIATE_SIZE,
    QKV_SIZE,
    VOCAB_SIZE,
    linear,
    lm_head,
    norm,
    tensor,
)
from pigguf.common.json_config import JsonConfig
from pigguf.errors import UnsupportedModel

LAYER = "transformer.blocks.{}"
TENSORS = (
    tensor("transformer.wte.weight", "token_embd.weight", VOCAB_SIZE, HIDDEN_SIZE),
    norm(f"{LAYER}.norm_1", "blk.{}.attn_norm"),
    *linear(f"{LAYER}.attn.Wqkv", "blk.{}.attn_qkv", QKV_SIZE, HIDDEN_SIZE, None),
    *linear(f"{LAYER}.attn.out_proj", "blk.{}.attn_output", HIDDEN_SIZE, HIDDEN_SIZE, None),
    norm(f"{LAYER}.norm_2", "blk.{}.ffn_norm"),
    *linear(f"{LAYER}.ffn.up_proj", "blk.{}.ffn_up", INTERMEDIATE_SIZE, HIDDEN_SIZE, None),
    *linear(f"{LAYER}.ffn.down_proj", "blk.{}.ffn_down", HIDDEN_SIZE, INTERMEDIATE_SIZE, None),
    norm("transformer.norm_f", "output_norm"),
    lm_head(),
)

# Keys of attn_config, with the values that both transformers and the graph compute.
ALLOWED_ATTENTION_VALUES: dict[str, tuple[Any, ...]] = {
    "alibi": (True,),
    "attn_type": ("multihead_attention",),
    "prefix_lm": (False,),
    "qk_ln": (False,),
    "rope": (False,),
    "sliding_window_size": (-1,),
    "softmax_scale": (),
}


def _check(keys: JsonConfig, hparams: HParams) -> None:
    section = keys.section("attn_config")
    for key, values in ALLOWED_ATTENTION_VALUES.items():
        if section is not None and key in section and section.values[key] not in values:
            raise UnsupportedModel(f"{section.describe(key)} asks for other attention", NOT_COMPUTED_HINT)


def _write(hparams: HParams) -> Mapping[str, Any]:
    return {"expansion_ratio": hparams.feed_forward_length // hparams.embedding_length}


MPT = Family(
    architecture="mpt",
    hf_classes=("MptForCausalLM", "MPTForCausalLM"),
    model_type="mpt",
    tensor_rules=TENSORS,
    config_key_aliases={
        "hidden_size": ("d_model",),
        "num_hidden_layers": ("n_layers",),
        "num_attention_heads": ("n_heads",),
        "max_position_embeddings": ("max_seq_len",),
        "intermediate_size": ("ffn_hidden_size",),
    },
    config_defaults={"max_position_embeddings": 2048},
    default_intermediate_size=four_times_hidden_size,  # transformers ignores expansion_ratio
    read_kv_heads=kv_heads_equal_heads,
    norm_type="layer",
    norm_epsilon_key="layer_norm_epsilon",
    norm_epsilon_default=1e-5,
    optional_features=TIED_BY_DEFAULT,
    hparam_rules=(
        HParamRule("attn_config.clip_qkv", "attention.clamp_kqv", "f32"),
        HParamRule("attn_config.alibi_bias_max", "attention.max_alibi_bias", "f32", 8.0, to_config=int),
    ),
    allowed_values={
        "hidden_act": None,
        "expansion_ratio": ((4,), "another width of the feed-forward than transformers computes"),
        "no_bias": ((True,), "biases"),
        "logit_scale": ((), "scaled logits"),
        "learned_pos_emb": None,  # has no effect with ALiBi
    },
    position_type="alibi",
    check_config=_check,
    export_config_from_hparams=_write,
)
