"""Command-R and Aya (Cohere): parallel attention and feed-forward with one norm, scaled logits.

Sources: transformers' modeling_cohere.py, which rotates interleaved as the graph does; llama.cpp
src/models/command-r.cpp and conversion/command_r.py. The embedding is the output matrix. The graph reads
norms of queries and keys, which Command-R+ has, in models with at least 64 layers, and in no others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pigguf.architectures.family import NOT_COMPUTED_HINT, Family
from pigguf.architectures.gemma import TIED_EMBEDDINGS_ONLY
from pigguf.architectures.hparam_rules import FeatureFlag, HParamRule
from pigguf.architectures.hparams import HParams
from pigguf.architectures.llama import (
    ATTENTION_NORM,
    EMBEDDING,
    LAYER,
    OUTPUT_NORM,
    ROTARY_BUFFERS,
    attention,
    feed_forward,
)
from pigguf.architectures.tensor_rules import HEAD_DIM, NUM_HEADS, NUM_KV_HEADS, lm_head, tensor
from pigguf.common.json_config import JsonConfig
from pigguf.errors import UnsupportedModel

QK_NORM = "use_qk_norm"
MIN_LAYERS_WITH_QK_NORM = 64


def _check(keys: JsonConfig, hparams: HParams) -> None:
    has_qk_norm = hparams.has_feature(QK_NORM)
    if has_qk_norm != (hparams.layers >= MIN_LAYERS_WITH_QK_NORM):
        raise UnsupportedModel(
            f"config.json: {QK_NORM} is {str(has_qk_norm).lower()} in a model of {hparams.layers} layers, "
            f"and llama.cpp's {hparams.architecture} graph has these norms from "
            f"{MIN_LAYERS_WITH_QK_NORM} layers on",
            NOT_COMPUTED_HINT,
        )


def _write(hparams: HParams) -> Mapping[str, Any]:
    return {"max_position_embeddings": hparams.rope.context_length}


COMMAND_R = Family(
    architecture="command-r",
    hf_classes=("CohereForCausalLM",),
    model_type="cohere",
    tensor_rules=(
        EMBEDDING,
        ATTENTION_NORM,
        *attention(),
        tensor(
            f"{LAYER}.self_attn.q_norm.weight", "blk.{}.attn_q_norm.weight", NUM_HEADS, HEAD_DIM, when=QK_NORM
        ),
        tensor(
            f"{LAYER}.self_attn.k_norm.weight",
            "blk.{}.attn_k_norm.weight",
            NUM_KV_HEADS,
            HEAD_DIM,
            when=QK_NORM,
        ),
        *feed_forward(),
        OUTPUT_NORM,
        lm_head(),
    ),
    ignored_tensors=ROTARY_BUFFERS,
    # Command-R was trained at model_max_length; its max_position_embeddings is 8192.
    config_key_aliases={"max_position_embeddings": ("model_max_length", "max_position_embeddings")},
    config_defaults={"max_position_embeddings": 8192, "rope_theta": 500000.0},
    norm_type="layer",
    norm_epsilon_key="layer_norm_eps",
    norm_epsilon_default=1e-5,
    optional_features={QK_NORM: FeatureFlag(QK_NORM)},
    hparam_rules=(HParamRule("logit_scale", "logit_scale", "f32", 0.0625),),
    allowed_values={**TIED_EMBEDDINGS_ONLY, "attention_bias": ((False,), "biases")},
    check_config=_check,
    export_config_from_hparams=_write,
)
