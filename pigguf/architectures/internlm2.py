"""InternLM2 and InternLM2.5: Llama with other names, and queries in groups with their key and value.

Sources: the code published with internlm/internlm2-7b (modeling_internlm2.py), as transformers has no class
for it; llama.cpp src/models/internlm2.cpp and conversion/internlm.py. The graph has no biases and requires an
output matrix. An export needs the published code again: its config has no auto_map.
"""

from __future__ import annotations

from pigguf.architectures.family import NOT_COMPUTED_HINT, UNTIED_BY_DEFAULT, Family
from pigguf.architectures.hparams import HParams
from pigguf.architectures.row_permutations import RowIndices, interleave_concatenated_qkv, ungroup_qkv
from pigguf.architectures.tensor_rules import (
    HIDDEN_SIZE,
    INTERMEDIATE_SIZE,
    Q_SIZE,
    QKV_SIZE,
    SEPARATE_QKV,
    VOCAB_SIZE,
    TensorPattern,
    TensorRule,
    linear,
    lm_head,
    norm,
    tensor,
)
from pigguf.common.json_config import JsonConfig
from pigguf.errors import UnsupportedModel

LAYER = "model.layers.{}"


def _ungroup_and_interleave(hparams: HParams) -> RowIndices:
    return ungroup_qkv(hparams)[interleave_concatenated_qkv(hparams)]


def _check(keys: JsonConfig, hparams: HParams) -> None:
    if keys.optional("bias", bool, True):
        raise UnsupportedModel(f"{keys.file}: bias is not false, so the model has biases", NOT_COMPUTED_HINT)


INTERNLM2 = Family(
    architecture="internlm2",
    hf_classes=("InternLM2ForCausalLM",),
    model_type="internlm2",
    tensor_rules=(
        tensor("model.tok_embeddings.weight", "token_embd.weight", VOCAB_SIZE, HIDDEN_SIZE),
        norm(f"{LAYER}.attention_norm", "blk.{}.attn_norm"),
        TensorRule(
            (TensorPattern(f"{LAYER}.attention.wqkv.weight", (QKV_SIZE, HIDDEN_SIZE)),),
            SEPARATE_QKV,
            row_permutation=_ungroup_and_interleave,
        ),
        *linear(f"{LAYER}.attention.wo", "blk.{}.attn_output", HIDDEN_SIZE, Q_SIZE, None),
        norm(f"{LAYER}.ffn_norm", "blk.{}.ffn_norm"),
        *linear(f"{LAYER}.feed_forward.w1", "blk.{}.ffn_gate", INTERMEDIATE_SIZE, HIDDEN_SIZE, None),
        *linear(f"{LAYER}.feed_forward.w3", "blk.{}.ffn_up", INTERMEDIATE_SIZE, HIDDEN_SIZE, None),
        *linear(f"{LAYER}.feed_forward.w2", "blk.{}.ffn_down", HIDDEN_SIZE, INTERMEDIATE_SIZE, None),
        norm("model.norm", "output_norm"),
        lm_head("output.weight"),
    ),
    ignored_tensors=r"model\.layers\.\d+\.attention\.rotary_emb\.inv_freq",
    optional_features=UNTIED_BY_DEFAULT,
    allowed_values={"tie_word_embeddings": ((False,), "the embedding as output matrix")},
    check_config=_check,
    export_config={"bias": False},
)
