"""Conditions of quantization recipes: for which tensors a rule of a recipe applies.

Upstream: llama.cpp src/llama-quant.cpp (llama_tensor_get_type_impl). Its rules count the tensors of a role
that came before, in the order of layers and names, and so do these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pigguf.architectures.hparams import HParams


@dataclass(frozen=True)
class TensorPosition:
    """What the conditions of a recipe depend on: a tensor's position in its model.

    Attributes:
        n_before: how many tensors of the same role come before it.
        layer: its layer, from 0; if every layer has one tensor of the role, this is `n_before`.
        n_layers: how many layers have a tensor of the role.
        hparams: the hyperparameters of the model.
        has_imatrix: whether an importance matrix is used.
    """

    n_before: int
    layer: int
    n_layers: int
    hparams: HParams
    has_imatrix: bool


Condition = Callable[[TensorPosition], bool]


def always(position: TensorPosition) -> bool:
    """Return True: the rule applies to every tensor."""
    return True


def both(one: Condition, other: Condition) -> Condition:
    """Return the condition that two conditions hold."""
    return lambda position: one(position) and other(position)


def first_layers(count: int) -> Condition:
    """Return the condition that the layer is one of the first `count`."""
    return lambda position: position.layer < count


def first_fraction(parts: int) -> Condition:
    """Return the condition that the layer is in the first 1/parts of the model, rounded down."""
    return lambda position: position.layer < position.n_layers // parts


def first_fraction_of_tensors(parts: int) -> Condition:
    """Return the condition that the tensor is in the first 1/parts of its role's tensors.

    Unlike with `first_fraction`, a layer of experts may have two tensors of a role.
    """
    return lambda position: position.n_before < position.n_layers // parts


def middle_layers(position: TensorPosition) -> bool:
    """Return whether the layer is not in the first or last eighth of the model."""
    return position.n_layers // 8 <= position.layer < 7 * position.n_layers // 8


def use_more_bits(position: TensorPosition) -> bool:
    """Return whether the layer is in the first or last eighth, or every third in between.

    Upstream has the same name for it.
    """
    return not middle_layers(position) or (position.layer - position.n_layers // 8) % 3 == 2


def gqa_4_or_more(position: TensorPosition) -> bool:
    """Return whether four or more query heads share a KV head: attn_v is then small, and matters more."""
    return position.hparams.kv_heads > 0 and position.hparams.heads // position.hparams.kv_heads >= 4


def gqa_4_or_4_experts(position: TensorPosition) -> bool:
    """Return whether attn_v is small relative to the model: n_gqa of 4 or more, or four experts or more."""
    return gqa_4_or_more(position) or position.hparams.experts >= 4


def eight_experts(position: TensorPosition) -> bool:
    """Return whether the model has eight experts (Mixtral): attention is small relative to them."""
    return position.hparams.experts == 8


def is_falcon(position: TensorPosition) -> bool:
    """Return whether the architecture is falcon."""
    return position.hparams.architecture == "falcon"


def not_falcon(position: TensorPosition) -> bool:
    """Return whether the architecture is not falcon."""
    return not is_falcon(position)


def is_70b(position: TensorPosition) -> bool:
    """Return whether llama.cpp calls the model LLM_TYPE_70B (src/models/llama.cpp, qwen2.cpp).

    More bits for attn_v cost almost nothing there.
    """
    hparams = position.hparams
    is_gqa = hparams.architecture == "llama" and hparams.kv_heads != hparams.heads
    return hparams.layers == 80 and (hparams.architecture == "qwen2" or is_gqa)


def has_imatrix(position: TensorPosition) -> bool:
    """Return whether an importance matrix is used."""
    return position.has_imatrix


def no_imatrix(position: TensorPosition) -> bool:
    """Return whether no importance matrix is used."""
    return not position.has_imatrix
