"""Gemma 2: Gemma with norms also after attention and feed-forward, softcapped logits, and a sliding window.

Sources: transformers' modeling_gemma2.py; llama.cpp src/models/gemma2.cpp and conversion/gemma.py. Every
other layer has sliding window attention. The graph has no key for the scale of attention: it uses head_dim,
but in the 27B, which it recognizes by its 46 layers, hidden_size / num_attention_heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pigguf.architectures.family import NOT_COMPUTED_HINT, Family
from pigguf.architectures.gemma import (
    ATTENTION_NORM,
    GEMMA_ALLOWED_VALUES,
    OUTPUT_NORM,
    TANH_GELU,
    TIED_EMBEDDINGS_ONLY,
    gemma_norm,
)
from pigguf.architectures.hparam_rules import HParamRule
from pigguf.architectures.hparams import HParams
from pigguf.architectures.llama import EMBEDDING, LAYER, ROTARY_BUFFERS, attention, feed_forward
from pigguf.architectures.tensor_rules import lm_head
from pigguf.common.json_config import JsonConfig
from pigguf.errors import UnsupportedModel

LAYERS_OF_27B = 46
SCALE, DEFAULT_SCALE = "query_pre_attn_scalar", 256.0
SOFTCAPPING = (
    HParamRule("attn_logit_softcapping", "attn_logit_softcapping", "f32", 50.0),
    HParamRule("final_logit_softcapping", "final_logit_softcapping", "f32", 30.0),
)
FEED_FORWARD_NORMS = (
    gemma_norm(f"{LAYER}.post_attention_layernorm", "blk.{}.post_attention_norm"),
    gemma_norm(f"{LAYER}.pre_feedforward_layernorm", "blk.{}.ffn_norm"),
)
POST_FEED_FORWARD_NORM = gemma_norm(f"{LAYER}.post_feedforward_layernorm", "blk.{}.post_ffw_norm")


def attention_scale_of_graph(hparams: HParams, layers_of_27b: int) -> int:
    """Return the query_pre_attn_scalar of the graph, which divides attention by its square root."""
    return hparams.embedding_length // hparams.heads if hparams.layers == layers_of_27b else hparams.head_dim


def check_attention_scale(keys: JsonConfig, hparams: HParams, layers_of_27b: int) -> None:
    """Raise if the config's scale of attention is not the graph's, for which there is no GGUF key.

    Raises:
        UnsupportedModel: it is not.
    """
    asked, computed = (
        keys.optional(SCALE, float, DEFAULT_SCALE),
        attention_scale_of_graph(hparams, layers_of_27b),
    )
    if asked != computed:
        raise UnsupportedModel(
            f"{keys.file}: {keys.prefix}{SCALE} = {asked:g} differs from llama.cpp's "
            f"{hparams.architecture} graph, which has {computed} for {hparams.layers} layers of "
            f"{hparams.heads} heads",
            NOT_COMPUTED_HINT,
        )


def _check(keys: JsonConfig, hparams: HParams) -> None:
    check_attention_scale(keys, hparams, LAYERS_OF_27B)
    for rule in SOFTCAPPING:  # null means no softcapping in transformers; the graph always has it
        if keys.values.get(rule.config_key, rule.default) is None:
            raise UnsupportedModel(
                f"{keys.describe(rule.config_key)} asks for logits without softcapping", NOT_COMPUTED_HINT
            )


def _write(hparams: HParams) -> Mapping[str, Any]:
    return {SCALE: attention_scale_of_graph(hparams, LAYERS_OF_27B)}


GEMMA2 = Family(
    architecture="gemma2",
    hf_classes=("Gemma2ForCausalLM",),
    model_type="gemma2",
    tensor_rules=(
        EMBEDDING,
        ATTENTION_NORM,
        *attention(),
        *FEED_FORWARD_NORMS,
        *feed_forward(),
        POST_FEED_FORWARD_NORM,
        OUTPUT_NORM,
        lm_head(),
    ),
    ignored_tensors=ROTARY_BUFFERS,
    config_defaults={"head_dim": 256, "max_position_embeddings": 8192, "num_key_value_heads": 4},
    optional_features={},
    hparam_rules=SOFTCAPPING,
    allowed_values={**GEMMA_ALLOWED_VALUES, **TIED_EMBEDDINGS_ONLY},
    allows_custom_head_dim=True,
    read_sliding_window=lambda keys: keys.optional("sliding_window", int, 4096),
    sliding_window_pattern=2,
    check_config=_check,
    export_config_from_hparams=_write,
    export_config={"hidden_activation": TANH_GELU},
)
