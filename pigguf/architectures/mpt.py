"""MPT: ALiBi, norms and projections without biases, one matrix for queries, keys and values.

Sources: transformers' modeling_mpt.py, which has no other positions than ALiBi; llama.cpp
src/models/mpt.cpp and conversion/mpt.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pigguf.architectures.family import NOT_COMPUTED, TIED_BY_DEFAULT, Family
from pigguf.architectures.hparam_rules import KeyRule, four_times, own_keys
from pigguf.architectures.hparams import HParams
from pigguf.architectures.tensor_rules import INNER, QKV, VOCAB, WIDTH, linear, norm, output, tensor
from pigguf.common.config import Config
from pigguf.errors import UnsupportedModel

LAYER = "transformer.blocks.{}"
TENSORS = (
    tensor("transformer.wte.weight", "token_embd.weight", VOCAB, WIDTH),
    norm(f"{LAYER}.norm_1", "blk.{}.attn_norm"),
    *linear(f"{LAYER}.attn.Wqkv", "blk.{}.attn_qkv", QKV, WIDTH, None),
    *linear(f"{LAYER}.attn.out_proj", "blk.{}.attn_output", WIDTH, WIDTH, None),
    norm(f"{LAYER}.norm_2", "blk.{}.ffn_norm"),
    *linear(f"{LAYER}.ffn.up_proj", "blk.{}.ffn_up", INNER, WIDTH, None),
    *linear(f"{LAYER}.ffn.down_proj", "blk.{}.ffn_down", WIDTH, INNER, None),
    norm("transformer.norm_f", "output_norm"),
    output(),
)

# Keys of attn_config, with the one value that transformers and the graph both compute.
ATTENTION: dict[str, tuple[Any, ...]] = {
    "alibi": (True,),
    "attn_type": ("multihead_attention",),
    "prefix_lm": (False,),
    "qk_ln": (False,),
    "rope": (False,),
    "sliding_window_size": (-1,),
    "softmax_scale": (),
}


def _check(keys: Config, hparams: HParams) -> None:
    section = keys.section("attn_config")
    for key, values in ATTENTION.items():
        if section is not None and key in section and section.values[key] not in values:
            raise UnsupportedModel(f"{section.says(key)} asks for another attention", NOT_COMPUTED)


def _write(hparams: HParams) -> Mapping[str, Any]:
    return {"expansion_ratio": hparams.feed_forward_length // hparams.embedding_length}


MPT = Family(
    architecture="mpt",
    classes=("MptForCausalLM", "MPTForCausalLM"),
    model_type="mpt",
    tensors=TENSORS,
    names={
        "hidden_size": ("d_model",),
        "num_hidden_layers": ("n_layers",),
        "num_attention_heads": ("n_heads",),
        "max_position_embeddings": ("max_seq_len",),
        "intermediate_size": ("ffn_hidden_size",),
    },
    defaults={"max_position_embeddings": 2048},
    feed_forward=four_times,  # transformers looks at no expansion_ratio
    kv_heads=own_keys,
    norm="layer",
    epsilon=("layer_norm_epsilon", 1e-5),
    parts=TIED_BY_DEFAULT,
    keys=(
        KeyRule("attn_config.clip_qkv", "attention.clamp_kqv", "f32"),
        KeyRule("attn_config.alibi_bias_max", "attention.max_alibi_bias", "f32", 8.0, to_config=int),
    ),
    only={
        "hidden_act": None,
        "expansion_ratio": ((4,), "another width of the feed-forward than transformers computes"),
        "no_bias": ((True,), "biases"),
        "logit_scale": ((), "scaled logits"),
        "learned_pos_emb": None,  # idle beside ALiBi
    },
    positions="alibi",
    check=_check,
    write=_write,
)
