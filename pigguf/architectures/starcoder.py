"""StarCoder and SantaCoder (GPT-BigCode): GPT-2 with multi-query attention.

Sources: transformers' modeling_gpt_bigcode.py; llama.cpp src/models/starcoder.cpp and
conversion/starcoder.py. With multi-head attention the query, key and value of a head are stored together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pigguf.architectures.gpt2 import GPT2, LAYER, TENSORS
from pigguf.architectures.hparams import HParams
from pigguf.architectures.row_permutations import ungroup_qkv
from pigguf.architectures.tensor_rules import HIDDEN_SIZE, INTERMEDIATE_SIZE, QKV_SIZE, linear
from pigguf.common.json_config import JsonConfig

# GPT-2's rules, except that projections are not transposed.
_PROJECTIONS = {
    rule.gguf[0].name: rule
    for rule in (
        *linear(f"{LAYER}.attn.c_attn", "blk.{}.attn_qkv", QKV_SIZE, HIDDEN_SIZE, permutation=ungroup_qkv),
        *linear(f"{LAYER}.attn.c_proj", "blk.{}.attn_output", HIDDEN_SIZE, HIDDEN_SIZE),
        *linear(f"{LAYER}.mlp.c_fc", "blk.{}.ffn_up", INTERMEDIATE_SIZE, HIDDEN_SIZE),
        *linear(f"{LAYER}.mlp.c_proj", "blk.{}.ffn_down", HIDDEN_SIZE, INTERMEDIATE_SIZE),
    )
}


def _kv_heads(keys: JsonConfig, heads: int) -> int:
    return 1 if keys.optional("multi_query", bool, True) else heads


def _write(hparams: HParams) -> Mapping[str, Any]:
    return {"multi_query": hparams.kv_heads == 1}


STARCODER = replace(
    GPT2,
    architecture="starcoder",
    hf_classes=("GPTBigCodeForCausalLM",),
    model_type="gpt_bigcode",
    tensor_rules=tuple(_PROJECTIONS.get(rule.gguf[0].name, rule) for rule in TENSORS),
    read_kv_heads=_kv_heads,
    export_config_from_hparams=_write,
)
