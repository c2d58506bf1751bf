"""OPT, which has no graph in llama.cpp and runs on GPT-2's, with GELU instead of ReLU.

GELU(K x) / K tends to ReLU(x); the error is at most 0.17 / K. So K is multiplied into the first matrix of the
feed-forward and 1 / K into the second. K is a power of two, which changes only exponents, so that an export
has the same weights again. The table of positions begins with two rows for padding, which are ignored. The
GGUF has HF_CLASS_KEY. Sources: transformers' modeling_opt.py; llama.cpp src/models/gpt2.cpp. OPT-350m, with
norms after its layers and a projected embedding, has no graph.
"""

from __future__ import annotations

from pigguf.architectures.family import TIED_BY_DEFAULT, Family
from pigguf.architectures.hparam_rules import kv_heads_equal_heads
from pigguf.architectures.hparams import HParams
from pigguf.architectures.tensor_rules import (
    HIDDEN_SIZE,
    INTERMEDIATE_SIZE,
    PADDED_ORIGINAL_CONTEXT,
    Q_SIZE,
    QKV_SIZE,
    VOCAB_SIZE,
    TensorPattern,
    TensorRule,
    ValueTransform,
    layer_norm,
    linear,
    lm_head,
    position_embedding,
    tensor,
)
from pigguf.common.json_config import JsonConfig
from pigguf.errors import UnsupportedModel

RELU_SCALE = 64.0  # K: a mean KL of 1e-7 in F32; a larger one makes block scales of quantized types subnormal

LAYER = "model.decoder.layers.{}"


def _concatenated_qkv(suffix: str, *columns: str) -> TensorRule:
    """Return the rule that concatenates queries, keys and values."""
    projections = (
        TensorPattern(f"{LAYER}.self_attn.{name}_proj.{suffix}", (Q_SIZE, *columns)) for name in "qkv"
    )
    return TensorRule(
        tuple(projections), (TensorPattern(f"blk.{{}}.attn_qkv.{suffix}", (QKV_SIZE, *columns)),)
    )


TENSORS = (
    tensor("model.decoder.embed_tokens.weight", "token_embd.weight", VOCAB_SIZE, HIDDEN_SIZE),
    position_embedding("model.decoder.embed_positions.weight", PADDED_ORIGINAL_CONTEXT),
    *layer_norm(f"{LAYER}.self_attn_layer_norm", "blk.{}.attn_norm"),
    _concatenated_qkv("weight", HIDDEN_SIZE),
    _concatenated_qkv("bias"),
    *linear(f"{LAYER}.self_attn.out_proj", "blk.{}.attn_output", HIDDEN_SIZE, HIDDEN_SIZE),
    *layer_norm(f"{LAYER}.final_layer_norm", "blk.{}.ffn_norm"),
    tensor(
        f"{LAYER}.fc1.weight",
        "blk.{}.ffn_up.weight",
        INTERMEDIATE_SIZE,
        HIDDEN_SIZE,
        transform=ValueTransform(RELU_SCALE),
    ),
    tensor(
        f"{LAYER}.fc1.bias", "blk.{}.ffn_up.bias", INTERMEDIATE_SIZE, transform=ValueTransform(RELU_SCALE)
    ),
    tensor(
        f"{LAYER}.fc2.weight",
        "blk.{}.ffn_down.weight",
        HIDDEN_SIZE,
        INTERMEDIATE_SIZE,
        transform=ValueTransform(1 / RELU_SCALE),
    ),
    tensor(f"{LAYER}.fc2.bias", "blk.{}.ffn_down.bias", HIDDEN_SIZE),
    *layer_norm("model.decoder.final_layer_norm", "output_norm"),
    lm_head(),
)


def _check(keys: JsonConfig, hparams: HParams) -> None:
    if keys.optional("word_embed_proj_dim", int, hparams.embedding_length) != hparams.embedding_length:
        raise UnsupportedModel(
            f"{keys.describe('word_embed_proj_dim')}, and hidden_size = {hparams.embedding_length}: "
            "a projected embedding, as OPT-350m has, is not supported by any graph of llama.cpp",
            "other sizes of OPT do not project it",
        )


OPT = Family(
    architecture="gpt2",
    hf_classes=("OPTForCausalLM",),
    model_type="opt",
    tensor_rules=TENSORS,
    tensor_name_aliases=((r"^decoder\.", "model.decoder."),),
    config_key_aliases={"intermediate_size": ("ffn_dim",)},
    read_kv_heads=kv_heads_equal_heads,
    norm_type="layer",
    norm_epsilon_key="layer_norm_eps",
    norm_epsilon_default=1e-5,
    optional_features=TIED_BY_DEFAULT,
    allowed_values={
        "hidden_act": None,
        "activation_function": (("relu",), "another activation than ReLU"),
        "do_layer_norm_before": ((True,), "norms after the layers, as in OPT-350m"),
        "_remove_final_layer_norm": ((False,), "a model without a final norm"),
        "enable_bias": ((True,), "projections without biases"),
        "layer_norm_elementwise_affine": ((True,), "norms without weights"),
    },
    position_type="learned",
    check_config=_check,
    runs_as_other_architecture=True,
)
