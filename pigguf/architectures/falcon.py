"""Falcon: parallel attention and feed-forward, no biases, few KV heads; the 40B variant has a norm for each.

Sources: transformers' modeling_falcon.py; llama.cpp src/models/falcon.cpp and conversion/falcon.py.
Checkpoints store queries in groups with their key and value, the graph reads all queries first. Falcon-RW,
which has ALiBi and biases, has no graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pigguf.architectures.family import TIED_BY_DEFAULT, Family
from pigguf.architectures.gptneox import GELU
from pigguf.architectures.hparam_rules import FeatureFlag, four_times_hidden_size
from pigguf.architectures.hparams import HParams
from pigguf.architectures.row_permutations import ungroup_qkv
from pigguf.architectures.tensor_rules import (
    HIDDEN_SIZE,
    INTERMEDIATE_SIZE,
    QKV_SIZE,
    VOCAB_SIZE,
    layer_norm,
    linear,
    lm_head,
    tensor,
)
from pigguf.common.json_config import JsonConfig

PARALLEL_NORMS = "parallel norms"
LAYER = "transformer.h.{}"


class ParallelNorms(FeatureFlag):
    """Whether attention and feed-forward have a norm each (num_ln_in_parallel_attn)."""

    def read(self, keys: JsonConfig) -> bool:
        """Return whether the model has two norms in a layer."""
        is_new_decoder = keys.optional("new_decoder_architecture", bool, False)
        return is_new_decoder and keys.optional("num_ln_in_parallel_attn", int, 2) == 2

    def write(self, config: dict[str, Any], present: bool) -> None:
        """Write the number of norms of a layer into a config."""
        config["num_ln_in_parallel_attn"] = 2 if present else 1


def _kv_heads(keys: JsonConfig, heads: int) -> int:
    """Return the number of KV heads; only the new decoder has num_kv_heads (FalconAttention)."""
    if keys.optional("new_decoder_architecture", bool, False):
        name = next((name for name in ("num_kv_heads", "n_head_kv") if name in keys), "num_kv_heads")
        return keys.optional(name, int, heads)
    return 1 if keys.optional("multi_query", bool, True) else heads


def _write(hparams: HParams) -> Mapping[str, Any]:
    is_old_decoder = hparams.kv_heads in (1, hparams.heads) and not hparams.has_feature(PARALLEL_NORMS)
    return {
        "new_decoder_architecture": not is_old_decoder,
        "multi_query": hparams.kv_heads == 1,
        "num_kv_heads": hparams.kv_heads,
        "parallel_attn": True,
    }


TENSORS = (
    tensor("transformer.word_embeddings.weight", "token_embd.weight", VOCAB_SIZE, HIDDEN_SIZE),
    *layer_norm(f"{LAYER}.input_layernorm", "blk.{}.attn_norm", when=f"!{PARALLEL_NORMS}"),
    *layer_norm(f"{LAYER}.ln_mlp", "blk.{}.attn_norm", when=PARALLEL_NORMS),
    *layer_norm(f"{LAYER}.ln_attn", "blk.{}.attn_norm_2", when=PARALLEL_NORMS),
    *linear(
        f"{LAYER}.self_attention.query_key_value",
        "blk.{}.attn_qkv",
        QKV_SIZE,
        HIDDEN_SIZE,
        None,
        permutation=ungroup_qkv,
    ),
    *linear(f"{LAYER}.self_attention.dense", "blk.{}.attn_output", HIDDEN_SIZE, HIDDEN_SIZE, None),
    *linear(f"{LAYER}.mlp.dense_h_to_4h", "blk.{}.ffn_up", INTERMEDIATE_SIZE, HIDDEN_SIZE, None),
    *linear(f"{LAYER}.mlp.dense_4h_to_h", "blk.{}.ffn_down", HIDDEN_SIZE, INTERMEDIATE_SIZE, None),
    *layer_norm("transformer.ln_f", "output_norm"),
    lm_head(),
)

FALCON = Family(
    architecture="falcon",
    hf_classes=("FalconForCausalLM", "RWForCausalLM"),
    model_type="falcon",
    legacy_model_types=("RefinedWeb", "RefinedWebModel"),
    tensor_rules=TENSORS,
    config_key_aliases={
        "num_hidden_layers": ("num_hidden_layers", "n_layer"),
        "num_attention_heads": ("num_attention_heads", "n_head"),
        "intermediate_size": ("ffn_hidden_size",),
    },
    config_defaults={"max_position_embeddings": 2048},
    default_intermediate_size=four_times_hidden_size,
    read_kv_heads=_kv_heads,
    norm_type="layer",
    norm_epsilon_key="layer_norm_epsilon",
    norm_epsilon_default=1e-5,
    optional_features={**TIED_BY_DEFAULT, PARALLEL_NORMS: ParallelNorms("num_ln_in_parallel_attn")},
    allowed_values={
        "hidden_act": None,
        "activation": (GELU, "another activation than GELU"),
        "alibi": ((False,), "ALiBi"),
        "bias": ((False,), "biases"),
        "parallel_attn": ((True,), "sequential attention and feed-forward"),
    },
    export_config_from_hparams=_write,
)
