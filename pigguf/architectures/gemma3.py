"""Gemma 3: Gemma 2 with norms of queries and keys, and sliding layers with a rope_theta of their own.

Sources: transformers' modeling_gemma3.py; llama.cpp src/models/gemma3.cpp and conversion/gemma.py. Five of
six layers have sliding window attention; they have a rope_theta of their own and are not scaled. Of a
multimodal model only the language model is converted: its text_config and its tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pigguf.architectures.family import TIED_BY_DEFAULT, Family
from pigguf.architectures.gemma import (
    ATTENTION_NORM,
    GEMMA_ALLOWED_VALUES,
    OUTPUT_NORM,
    TANH_GELU,
    gemma_norm,
)
from pigguf.architectures.gemma2 import (
    FEED_FORWARD_NORMS,
    POST_FEED_FORWARD_NORM,
    SCALE,
    attention_scale_of_graph,
    check_attention_scale,
)
from pigguf.architectures.hparam_rules import HParamRule
from pigguf.architectures.hparams import HParams
from pigguf.architectures.llama import EMBEDDING, LAYER, ROTARY_BUFFERS, attention, feed_forward
from pigguf.architectures.tensor_rules import HEAD_DIM, lm_head
from pigguf.common.json_config import JsonConfig

LAYERS_OF_27B = 62


def _check(keys: JsonConfig, hparams: HParams) -> None:
    check_attention_scale(keys, hparams, LAYERS_OF_27B)


def _write(hparams: HParams) -> Mapping[str, Any]:
    return {SCALE: attention_scale_of_graph(hparams, LAYERS_OF_27B)}


GEMMA3 = Family(
    architecture="gemma3",
    hf_classes=("Gemma3ForCausalLM",),
    model_type="gemma3_text",
    tensor_rules=(
        EMBEDDING,
        ATTENTION_NORM,
        *attention(),
        gemma_norm(f"{LAYER}.self_attn.q_norm", "blk.{}.attn_q_norm", HEAD_DIM),
        gemma_norm(f"{LAYER}.self_attn.k_norm", "blk.{}.attn_k_norm", HEAD_DIM),
        *FEED_FORWARD_NORMS,
        *feed_forward(),
        POST_FEED_FORWARD_NORM,
        OUTPUT_NORM,
        lm_head(),
    ),
    ignored_tensors=ROTARY_BUFFERS,
    config_defaults={  # the published text_config of the 4B omits keys with these values
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
    },
    optional_features=TIED_BY_DEFAULT,
    hparam_rules=(HParamRule("final_logit_softcapping", "final_logit_softcapping", "f32"),),
    allowed_values={
        **GEMMA_ALLOWED_VALUES,
        "attn_logit_softcapping": ((None,), "attention with softcapping"),
    },
    has_local_rope_theta=True,
    allows_custom_head_dim=True,
    read_sliding_window=lambda keys: keys.optional("sliding_window", int, 4096),
    sliding_window_pattern=6,
    check_config=_check,
    export_config_from_hparams=_write,
    export_config={"hidden_activation": TANH_GELU},
)

GEMMA3_MULTIMODAL = replace(
    GEMMA3,
    hf_classes=("Gemma3ForConditionalGeneration",),
    model_type="gemma3",
    config_section="text_config",
    ignored_tensors=rf"(model\.)?(vision_tower|multi_modal_projector)\..*|{ROTARY_BUFFERS}",
    ignored_tensors_note="vision_tower and multi_modal_projector are ignored: it is the language model only",
    tensor_name_aliases=(
        (r"^(model\.language_model\.|language_model\.model\.)", "model."),
        (r"^language_model\.", ""),
    ),
)
