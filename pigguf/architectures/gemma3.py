"""Gemma 3: Gemma 2 with norms over queries and keys in place of caps, and sliding layers rotated otherwise.

Sources: transformers' modeling_gemma3.py; llama.cpp src/models/gemma3.cpp and conversion/gemma.py. Five of
six layers slide; they have a base of their own, and no factor scales them. Of a model that sees, the
part that reads and writes is converted: its text_config, and the tensors of its language model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pigguf.architectures.family import TIED_BY_DEFAULT, Family
from pigguf.architectures.gemma import ATTENTION_NORM, ONLY, OUTPUT_NORM, TANH_GELU, one_more
from pigguf.architectures.gemma2 import (
    LAST_NORM,
    NORMS_AROUND_FEED_FORWARD,
    SCALE,
    graphs_scale,
    refuse_other_scale,
)
from pigguf.architectures.hparam_rules import KeyRule
from pigguf.architectures.hparams import HParams
from pigguf.architectures.llama import EMBEDDING, LAYER, ROTARY_BUFFERS, attention, feed_forward
from pigguf.architectures.tensor_rules import HEAD, output
from pigguf.common.config import Config

LAYERS_OF_27B = 62


def _check(keys: Config, hparams: HParams) -> None:
    refuse_other_scale(keys, hparams, LAYERS_OF_27B)


def _write(hparams: HParams) -> Mapping[str, Any]:
    return {SCALE: graphs_scale(hparams, LAYERS_OF_27B)}


GEMMA3 = Family(
    architecture="gemma3",
    classes=("Gemma3ForCausalLM",),
    model_type="gemma3_text",
    tensors=(
        EMBEDDING,
        ATTENTION_NORM,
        *attention(),
        one_more(f"{LAYER}.self_attn.q_norm", "blk.{}.attn_q_norm", HEAD),
        one_more(f"{LAYER}.self_attn.k_norm", "blk.{}.attn_k_norm", HEAD),
        *NORMS_AROUND_FEED_FORWARD,
        *feed_forward(),
        LAST_NORM,
        OUTPUT_NORM,
        output(),
    ),
    dropped=ROTARY_BUFFERS,
    defaults={  # the published text_config of the 4B says little more than what differs from these
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
    parts=TIED_BY_DEFAULT,
    keys=(KeyRule("final_logit_softcapping", "final_logit_softcapping", "f32"),),
    only={**ONLY, "attn_logit_softcapping": ((None,), "capped attention")},
    local_base=True,
    free_head_dim=True,
    sliding_window=lambda keys: keys.optional("sliding_window", int, 4096),
    period=6,
    check=_check,
    write=_write,
    export={"hidden_activation": TANH_GELU},
)

GEMMA3_THAT_SEES = replace(
    GEMMA3,
    classes=("Gemma3ForConditionalGeneration",),
    model_type="gemma3",
    section="text_config",
    dropped=rf"(model\.)?(vision_tower|multi_modal_projector)\..*|{ROTARY_BUFFERS}",
    leaves_out="what sees images (vision_tower, multi_modal_projector) is left out: the file reads text",
    renamed=((r"^(model\.language_model\.|language_model\.model\.)", "model."), (r"^language_model\.", "")),
)
