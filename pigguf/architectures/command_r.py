"""Command-R and Aya (Cohere): attention and feed-forward side by side behind one norm, scaled logits.

Sources: transformers' modeling_cohere.py, which rotates neighbours as the graph does; llama.cpp
src/models/command-r.cpp and conversion/command_r.py. The embedding is the output matrix. The graph looks
for norms over queries and keys, which Command-R+ has, in models of 64 layers and more, and in no others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pigguf.architectures.family import NOT_COMPUTED, Family
from pigguf.architectures.gemma import TIED_ONLY
from pigguf.architectures.hparam_rules import Flag, KeyRule
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
from pigguf.architectures.tensor_rules import HEAD, HEADS, KEY_HEADS, output, tensor
from pigguf.common.config import Config
from pigguf.errors import UnsupportedModel

QK_NORM = "use_qk_norm"
LAYERS_WITH_NORMS = 64


def _check(keys: Config, hparams: HParams) -> None:
    if hparams.has(QK_NORM) != (hparams.layers >= LAYERS_WITH_NORMS):
        raise UnsupportedModel(
            f"config.json: {QK_NORM} is {str(hparams.has(QK_NORM)).lower()} in a model of {hparams.layers} layers, "
            f"and llama.cpp's {hparams.architecture} graph has those norms from {LAYERS_WITH_NORMS} layers on",
            NOT_COMPUTED,
        )


def _write(hparams: HParams) -> Mapping[str, Any]:
    return {"max_position_embeddings": hparams.rope.context_length}


COMMAND_R = Family(
    architecture="command-r",
    classes=("CohereForCausalLM",),
    model_type="cohere",
    tensors=(
        EMBEDDING,
        ATTENTION_NORM,
        *attention(),
        tensor(f"{LAYER}.self_attn.q_norm.weight", "blk.{}.attn_q_norm.weight", HEADS, HEAD, when=QK_NORM),
        tensor(
            f"{LAYER}.self_attn.k_norm.weight", "blk.{}.attn_k_norm.weight", KEY_HEADS, HEAD, when=QK_NORM
        ),
        *feed_forward(),
        OUTPUT_NORM,
        output(),
    ),
    dropped=ROTARY_BUFFERS,
    # Command-R was trained at the first of the two, and says 8192 for the second.
    names={"max_position_embeddings": ("model_max_length", "max_position_embeddings")},
    defaults={"max_position_embeddings": 8192, "rope_theta": 500000.0},
    norm="layer",
    epsilon=("layer_norm_eps", 1e-5),
    parts={QK_NORM: Flag(QK_NORM)},
    keys=(KeyRule("logit_scale", "logit_scale", "f32", 0.0625),),
    only={**TIED_ONLY, "attention_bias": ((False,), "biases")},
    check=_check,
    write=_write,
)
