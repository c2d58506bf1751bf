"""Baichuan and Baichuan 2: Llama with queries, keys and values in one matrix; the 13B has ALiBi.

Sources: the code published with baichuan-inc/Baichuan-7B, Baichuan-13B and Baichuan2 (modeling_baichuan.py),
as transformers has no class for it; llama.cpp src/models/baichuan.cpp and conversion/baichuan.py. The graph
distinguishes the 7B from the 13B by the number of layers, 32 and 40, and gives other models no positions.
Baichuan 2 normalizes the rows of its output matrix (NormHead); like vLLM, we recognize it by its vocabulary.
llama.cpp's converter leaves the rows as they are. An export needs the published code again.
"""

from __future__ import annotations

from typing import Any

from pigguf.architectures.family import NOT_COMPUTED_HINT, UNTIED_BY_DEFAULT, Family
from pigguf.architectures.hparam_rules import FeatureFlag, kv_heads_equal_heads
from pigguf.architectures.hparams import HParams
from pigguf.architectures.llama import (
    ATTENTION_NORM,
    EMBEDDING,
    FEED_FORWARD_NORM,
    LAYER,
    OUTPUT_NORM,
    ROTARY_BUFFERS,
    feed_forward,
)
from pigguf.architectures.row_permutations import interleave_concatenated_qkv
from pigguf.architectures.tensor_rules import (
    HIDDEN_SIZE,
    Q_SIZE,
    QKV_SIZE,
    SEPARATE_QKV,
    VOCAB_SIZE,
    TensorPattern,
    TensorRule,
    ValueTransform,
    linear,
    tensor,
)
from pigguf.common.json_config import JsonConfig
from pigguf.errors import UnsupportedModel
from pigguf.llama_cpp_internals.graph_inputs import ALIBI_LAYER_COUNTS

ROPE_LAYERS, ALIBI_LAYERS = 32, ALIBI_LAYER_COUNTS["baichuan"]
NORMALIZED_OUTPUT = "normalized output rows"
BAICHUAN2_VOCAB_SIZE = 125696


class NormalizedOutput(FeatureFlag):
    """Whether the model's code normalizes the rows of the output matrix, as that of Baichuan 2 does."""

    def read(self, keys: JsonConfig) -> bool:
        """Return whether the model is a Baichuan 2."""
        return keys.optional("vocab_size", int, 0) >= BAICHUAN2_VOCAB_SIZE

    def write(self, config: dict[str, Any], present: bool) -> None:
        """Write nothing: the vocabulary size shows it, and the rows are normalized by now."""


def _check(keys: JsonConfig, hparams: HParams) -> None:
    if hparams.layers not in (ROPE_LAYERS, ALIBI_LAYERS):
        raise UnsupportedModel(
            f"{keys.describe('num_hidden_layers')}: llama.cpp's {hparams.architecture} graph has "
            f"rotary positions with {ROPE_LAYERS} layers, ALiBi for {ALIBI_LAYERS}, and none with others",
            NOT_COMPUTED_HINT,
        )


BAICHUAN = Family(
    architecture="baichuan",
    hf_classes=("BaichuanForCausalLM", "BaiChuanForCausalLM"),
    model_type="baichuan",
    tensor_rules=(
        EMBEDDING,
        ATTENTION_NORM,
        TensorRule(
            (TensorPattern(f"{LAYER}.self_attn.W_pack.weight", (QKV_SIZE, HIDDEN_SIZE)),),
            SEPARATE_QKV,
            row_permutation=interleave_concatenated_qkv,
        ),
        *linear(f"{LAYER}.self_attn.o_proj", "blk.{}.attn_output", HIDDEN_SIZE, Q_SIZE, None),
        FEED_FORWARD_NORM,
        *feed_forward(),
        OUTPUT_NORM,
        tensor(
            "lm_head.weight",
            "output.weight",
            VOCAB_SIZE,
            HIDDEN_SIZE,
            when=NORMALIZED_OUTPUT,
            transform=ValueTransform(normalize_rows=True),
        ),
        tensor("lm_head.weight", "output.weight", VOCAB_SIZE, HIDDEN_SIZE, when=f"!{NORMALIZED_OUTPUT}"),
    ),
    ignored_tensors=ROTARY_BUFFERS,
    config_key_aliases={"max_position_embeddings": ("max_position_embeddings", "model_max_length")},
    read_kv_heads=kv_heads_equal_heads,
    optional_features={**UNTIED_BY_DEFAULT, NORMALIZED_OUTPUT: NormalizedOutput("vocab_size")},
    allowed_values={"tie_word_embeddings": ((False,), "the embedding as output matrix")},
    check_config=_check,
)
