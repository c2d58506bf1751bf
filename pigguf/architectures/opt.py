"""OPT, which has no graph of its own in llama.cpp: it is GPT-2's but for ReLU in place of GELU.

GELU(K x) / K tends to ReLU(x) (it is off by 0.17 / K at most), so K is folded into the first matrix of the
feed-forward and 1 / K into the second. K is a power of two, which changes exponents and no digits, so that
an export has the very weights again. The table of positions begins with two rows for padding, which are
left out. The GGUF says which family it was (CLASS_KEY).
Sources: transformers' modeling_opt.py; llama.cpp src/models/gpt2.cpp. OPT-350m, with norms behind its
layers and a narrower embedding, has no graph.
"""

from __future__ import annotations

from pigguf.architectures.family import TIED_BY_DEFAULT, Family
from pigguf.architectures.hparam_rules import own_keys
from pigguf.architectures.hparams import HParams
from pigguf.architectures.tensor_rules import (
    INNER,
    PADDED_ORIGINAL,
    QKV,
    QUERIES,
    VOCAB,
    WIDTH,
    Change,
    Piece,
    TensorRule,
    layer_norm,
    learned_positions,
    linear,
    output,
    tensor,
)
from pigguf.common.config import Config
from pigguf.errors import UnsupportedModel

FOLD = 64.0  # K: mean KL 1e-7 in F32; more would make block scales of quantized types subnormal

LAYER = "model.decoder.layers.{}"


def _joined(kind: str, *columns: str) -> TensorRule:
    """Queries, keys and values, one behind another."""
    pieces = (Piece(f"{LAYER}.self_attn.{one}_proj.{kind}", (QUERIES, *columns)) for one in "qkv")
    return TensorRule(tuple(pieces), (Piece(f"blk.{{}}.attn_qkv.{kind}", (QKV, *columns)),))


TENSORS = (
    tensor("model.decoder.embed_tokens.weight", "token_embd.weight", VOCAB, WIDTH),
    learned_positions("model.decoder.embed_positions.weight", PADDED_ORIGINAL),
    *layer_norm(f"{LAYER}.self_attn_layer_norm", "blk.{}.attn_norm"),
    _joined("weight", WIDTH),
    _joined("bias"),
    *linear(f"{LAYER}.self_attn.out_proj", "blk.{}.attn_output", WIDTH, WIDTH),
    *layer_norm(f"{LAYER}.final_layer_norm", "blk.{}.ffn_norm"),
    tensor(f"{LAYER}.fc1.weight", "blk.{}.ffn_up.weight", INNER, WIDTH, change=Change(FOLD)),
    tensor(f"{LAYER}.fc1.bias", "blk.{}.ffn_up.bias", INNER, change=Change(FOLD)),
    tensor(f"{LAYER}.fc2.weight", "blk.{}.ffn_down.weight", WIDTH, INNER, change=Change(1 / FOLD)),
    tensor(f"{LAYER}.fc2.bias", "blk.{}.ffn_down.bias", WIDTH),
    *layer_norm("model.decoder.final_layer_norm", "output_norm"),
    output(),
)


def _check(keys: Config, hparams: HParams) -> None:
    if keys.optional("word_embed_proj_dim", int, hparams.embedding_length) != hparams.embedding_length:
        raise UnsupportedModel(
            f"{keys.says('word_embed_proj_dim')}, and hidden_size = {hparams.embedding_length}: "
            "an embedding that is projected, as OPT-350m's, has no graph in llama.cpp",
            "other sizes of OPT have none",
        )


OPT = Family(
    architecture="gpt2",
    classes=("OPTForCausalLM",),
    model_type="opt",
    tensors=TENSORS,
    renamed=((r"^decoder\.", "model.decoder."),),
    names={"intermediate_size": ("ffn_dim",)},
    kv_heads=own_keys,
    norm="layer",
    epsilon=("layer_norm_eps", 1e-5),
    parts=TIED_BY_DEFAULT,
    only={
        "hidden_act": None,
        "activation_function": (("relu",), "another activation than ReLU"),
        "do_layer_norm_before": ((True,), "norms behind the layers, as OPT-350m has them"),
        "_remove_final_layer_norm": ((False,), "a model without a last norm"),
        "enable_bias": ((True,), "projections without biases"),
        "layer_norm_elementwise_affine": ((True,), "norms without weights"),
    },
    positions="learned",
    check=_check,
    folded=True,
)
