"""Falcon: attention and feed-forward side by side, no biases, few keys; the 40B kind has a norm for each.

Sources: transformers' modeling_falcon.py; llama.cpp src/models/falcon.cpp and conversion/falcon.py.
Queries lie in groups with their key and value here, all queries first there. Falcon-RW, which has ALiBi
and biases, has no graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pigguf.architectures.family import TIED_BY_DEFAULT, Family
from pigguf.architectures.gptneox import GELU
from pigguf.architectures.hparam_rules import Flag, four_times
from pigguf.architectures.hparams import HParams
from pigguf.architectures.tensor_rules import (
    INNER,
    QKV,
    VOCAB,
    WIDTH,
    grouped_qkv,
    layer_norm,
    linear,
    output,
    tensor,
)
from pigguf.common.config import Config

TWO_NORMS = "two norms"
LAYER = "transformer.h.{}"


class TwoNorms(Flag):
    """Whether attention and feed-forward have a norm each (num_ln_in_parallel_attn)."""

    def read(self, keys: Config) -> bool:
        newer = keys.optional("new_decoder_architecture", bool, False)
        return newer and keys.optional("num_ln_in_parallel_attn", int, 2) == 2

    def write(self, config: dict[str, Any], present: bool) -> None:
        config["num_ln_in_parallel_attn"] = 2 if present else 1


def _kv_heads(keys: Config, heads: int) -> int:
    """num_kv_heads counts only in the newer kind (modeling_falcon.py, FalconAttention)."""
    if keys.optional("new_decoder_architecture", bool, False):
        name = next((name for name in ("num_kv_heads", "n_head_kv") if name in keys), "num_kv_heads")
        return keys.optional(name, int, heads)
    return 1 if keys.optional("multi_query", bool, True) else heads


def _write(hparams: HParams) -> Mapping[str, Any]:
    older = hparams.kv_heads in (1, hparams.heads) and not hparams.has(TWO_NORMS)
    return {
        "new_decoder_architecture": not older,
        "multi_query": hparams.kv_heads == 1,
        "num_kv_heads": hparams.kv_heads,
        "parallel_attn": True,
    }


TENSORS = (
    tensor("transformer.word_embeddings.weight", "token_embd.weight", VOCAB, WIDTH),
    *layer_norm(f"{LAYER}.input_layernorm", "blk.{}.attn_norm", when=f"!{TWO_NORMS}"),
    *layer_norm(f"{LAYER}.ln_mlp", "blk.{}.attn_norm", when=TWO_NORMS),
    *layer_norm(f"{LAYER}.ln_attn", "blk.{}.attn_norm_2", when=TWO_NORMS),
    *linear(
        f"{LAYER}.self_attention.query_key_value", "blk.{}.attn_qkv", QKV, WIDTH, None, order=grouped_qkv
    ),
    *linear(f"{LAYER}.self_attention.dense", "blk.{}.attn_output", WIDTH, WIDTH, None),
    *linear(f"{LAYER}.mlp.dense_h_to_4h", "blk.{}.ffn_up", INNER, WIDTH, None),
    *linear(f"{LAYER}.mlp.dense_4h_to_h", "blk.{}.ffn_down", WIDTH, INNER, None),
    *layer_norm("transformer.ln_f", "output_norm"),
    output(),
)

FALCON = Family(
    architecture="falcon",
    classes=("FalconForCausalLM", "RWForCausalLM"),
    model_type="falcon",
    old_model_types=("RefinedWeb", "RefinedWebModel"),
    tensors=TENSORS,
    names={
        "num_hidden_layers": ("num_hidden_layers", "n_layer"),
        "num_attention_heads": ("num_attention_heads", "n_head"),
        "intermediate_size": ("ffn_hidden_size",),
    },
    defaults={"max_position_embeddings": 2048},
    feed_forward=four_times,
    kv_heads=_kv_heads,
    norm="layer",
    epsilon=("layer_norm_epsilon", 1e-5),
    parts={**TIED_BY_DEFAULT, TWO_NORMS: TwoNorms("num_ln_in_parallel_attn")},
    only={
        "hidden_act": None,
        "activation": (GELU, "another activation than GELU"),
        "alibi": ((False,), "ALiBi"),
        "bias": ((False,), "biases"),
        "parallel_attn": ((True,), "attention and feed-forward one after the other"),
    },
    write=_write,
)
