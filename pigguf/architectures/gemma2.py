"""Gemma 2: Gemma with norms behind attention and feed-forward too, capped logits, and a sliding window.

Sources: transformers' modeling_gemma2.py; llama.cpp src/models/gemma2.cpp and conversion/gemma.py. Every
other layer looks back over the window alone. The graph has no key for the scale of attention: it goes by
the width of a head, but in a model of 46 layers, the 27B, by the embedding's share of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pigguf.architectures.family import NOT_COMPUTED, Family
from pigguf.architectures.gemma import (
    ATTENTION_NORM,
    ONLY,
    OUTPUT_NORM,
    TANH_GELU,
    TIED_ONLY,
    one_more,
)
from pigguf.architectures.hparam_rules import KeyRule
from pigguf.architectures.hparams import HParams
from pigguf.architectures.llama import EMBEDDING, LAYER, ROTARY_BUFFERS, attention, feed_forward
from pigguf.architectures.tensor_rules import output
from pigguf.common.config import Config
from pigguf.errors import UnsupportedModel

LAYERS_OF_27B = 46
SCALE, DEFAULT_SCALE = "query_pre_attn_scalar", 256.0
CAPS = (
    KeyRule("attn_logit_softcapping", "attn_logit_softcapping", "f32", 50.0),
    KeyRule("final_logit_softcapping", "final_logit_softcapping", "f32", 30.0),
)
NORMS_AROUND_FEED_FORWARD = (
    one_more(f"{LAYER}.post_attention_layernorm", "blk.{}.post_attention_norm"),
    one_more(f"{LAYER}.pre_feedforward_layernorm", "blk.{}.ffn_norm"),
)
LAST_NORM = one_more(f"{LAYER}.post_feedforward_layernorm", "blk.{}.post_ffw_norm")


def graphs_scale(hparams: HParams, layers_of_27b: int) -> int:
    """What the graph divides attention by the root of."""
    return hparams.embedding_length // hparams.heads if hparams.layers == layers_of_27b else hparams.head_dim


def refuse_other_scale(keys: Config, hparams: HParams, layers_of_27b: int) -> None:
    """Refuse a scale of attention that is not the graph's, which no key can tell it."""
    asked, computed = keys.optional(SCALE, float, DEFAULT_SCALE), graphs_scale(hparams, layers_of_27b)
    if asked != computed:
        raise UnsupportedModel(
            f"{keys.file}: {keys.prefix}{SCALE} = {asked:g} scales attention otherwise than llama.cpp's "
            f"{hparams.architecture} graph, which has {computed} for {hparams.layers} layers of {hparams.heads} heads",
            NOT_COMPUTED,
        )


def _check(keys: Config, hparams: HParams) -> None:
    refuse_other_scale(keys, hparams, LAYERS_OF_27B)
    for rule in CAPS:  # null is no cap to transformers, and the graph always has one
        if keys.values.get(rule.config, rule.default) is None:
            raise UnsupportedModel(f"{keys.says(rule.config)} asks for logits without a cap", NOT_COMPUTED)


def _write(hparams: HParams) -> Mapping[str, Any]:
    return {SCALE: graphs_scale(hparams, LAYERS_OF_27B)}


GEMMA2 = Family(
    architecture="gemma2",
    classes=("Gemma2ForCausalLM",),
    model_type="gemma2",
    tensors=(
        EMBEDDING,
        ATTENTION_NORM,
        *attention(),
        *NORMS_AROUND_FEED_FORWARD,
        *feed_forward(),
        LAST_NORM,
        OUTPUT_NORM,
        output(),
    ),
    dropped=ROTARY_BUFFERS,
    defaults={"head_dim": 256, "max_position_embeddings": 8192, "num_key_value_heads": 4},
    parts={},
    keys=CAPS,
    only={**ONLY, **TIED_ONLY},
    free_head_dim=True,
    sliding_window=lambda keys: keys.optional("sliding_window", int, 4096),
    period=2,
    check=_check,
    write=_write,
    export={"hidden_activation": TANH_GELU},
)
