"""Recipes: which tensor of a model gets which type, exactly as llama_model_quantize chooses.

A recipe is a row of data: a default type, and rules for the tensors that deserve more bits (or
bear fewer). Three rules hold for every recipe: what is not a weight matrix stays F32, the output
matrix (or the embedding that serves as one) gets at least Q6_K, and a tensor whose rows do not
divide into the chosen type's blocks falls back to a type they do divide into.

Upstream: llama.cpp src/llama-quant.cpp (tensor_allows_quantization, llama_tensor_get_type_impl,
tensor_type_fallback). Its counters of tensors seen so far equal the layer's number here, because
every layer of a checked model has each tensor once. Left out: experts, and importance matrices.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pigguf.gguf_file import TensorType, block_elements
from pigguf.spec import ModelSpec
from pigguf.tensors import TensorRef

EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"


When = Callable[[int, ModelSpec], bool]  # of a tensor in this layer (from 0) of this model
Rules = Mapping[str, tuple[tuple[When, TensorType], ...]]


def always(layer: int, spec: ModelSpec) -> bool:
    return True


def first_layers(count: int) -> When:
    return lambda layer, spec: layer < count


def first_part(parts: int) -> When:
    """Layers in the first 1/parts of the model, rounded down."""
    return lambda layer, spec: layer < spec.layers // parts


def outer_and_every_third(layer: int, spec: ModelSpec) -> bool:
    """The first and last eighth of the layers, and every third between (upstream: use_more_bits)."""
    eighth = spec.layers // 8
    return layer < eighth or layer >= 7 * spec.layers // 8 or (layer - eighth) % 3 == 2


def few_value_heads(layer: int, spec: ModelSpec) -> bool:
    """Four or more query heads share a value head, which makes attn_v small and dear."""
    return spec.heads // spec.kv_heads >= 4


@dataclass(frozen=True)
class Recipe:
    """One value of --type.

    Attributes:
        name: as the user writes it.
        file_type: general.file_type, a number of llama.h's enum llama_ftype.
        default: the type of every matrix that no rule speaks of.
        bits_per_weight: of Llama 3.1 8B (llama.cpp tools/quantize/README.md); other shapes are near it.
        description: for the help text.
        rules: for a layer's tensor by its stem ("attn_v"), types with conditions; the first that holds wins.
    """

    name: str
    file_type: int
    default: TensorType
    bits_per_weight: float
    description: str
    rules: Rules = field(default_factory=dict)

    def is_fallback(self, kind: TensorType) -> bool:
        """Whether a tensor has this type only because its rows are not whole blocks of the recipe's.

        All types that one recipe asks for have blocks of one size; a fallback's are smaller.
        """
        return kind is not TensorType.F32 and block_elements(kind) < block_elements(self.default)


_MORE_FOR_VALUES_AND_DOWN: Rules = {
    "attn_v": ((outer_and_every_third, TensorType.Q6_K),),
    "ffn_down": ((outer_and_every_third, TensorType.Q6_K),),
}
_Q4_K_S: Rules = {
    "attn_v": ((first_layers(4), TensorType.Q5_K),),
    "ffn_down": ((first_part(8), TensorType.Q5_K),),
}
_IQ4_XS: Rules = {
    "attn_v": ((few_value_heads, TensorType.Q5_K),),
    "ffn_down": ((first_part(8), TensorType.Q5_K),),
}
_Q3_K_M: Rules = {
    "attn_v": ((first_layers(2), TensorType.Q5_K), (always, TensorType.Q4_K)),
    "attn_output": ((always, TensorType.Q4_K),),
    "ffn_down": ((first_part(16), TensorType.Q5_K), (always, TensorType.Q4_K)),
}
_Q2_K: Rules = {
    "attn_v": ((few_value_heads, TensorType.Q4_K), (always, TensorType.Q3_K)),
    "attn_output": ((always, TensorType.Q3_K),),
    "ffn_down": ((always, TensorType.Q3_K),),
}

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("F32", 0, TensorType.F32, 32.0, "full precision"),
        Recipe("F16", 1, TensorType.F16, 16.0, "half precision"),
        Recipe("BF16", 32, TensorType.BF16, 16.0, "as most checkpoints are stored"),
        Recipe("Q8_0", 7, TensorType.Q8_0, 8.5, "hardly to be told from F16"),
        Recipe("Q6_K", 18, TensorType.Q6_K, 6.6, "very small loss"),
        Recipe("Q5_K_M", 17, TensorType.Q5_K, 5.7, "small loss", _MORE_FOR_VALUES_AND_DOWN),
        Recipe("Q5_K_S", 16, TensorType.Q5_K, 5.6, "small loss, a little smaller"),
        Recipe("Q4_K_M", 15, TensorType.Q4_K, 4.9, "the usual choice", _MORE_FOR_VALUES_AND_DOWN),
        Recipe("Q4_K_S", 14, TensorType.Q4_K, 4.7, "the usual choice, a little smaller", _Q4_K_S),
        Recipe("IQ4_XS", 30, TensorType.IQ4_XS, 4.5, "smaller than Q4_K_S, much the same loss", _IQ4_XS),
        Recipe("Q3_K_M", 12, TensorType.Q3_K, 4.0, "noticeable loss", _Q3_K_M),
        Recipe("Q2_K", 10, TensorType.Q2_K, 3.2, "the smallest, with great loss", _Q2_K),
    )
}

# What attn_v gets instead in models of the 70B class: it is so small there that bits are nearly free.
_VALUES_OF_70B = {TensorType.Q3_K: TensorType.Q5_K, TensorType.Q4_K: TensorType.Q5_K}

# For rows that are not whole blocks of 256. F16 where they are not whole blocks of 32 either.
_FALLBACK = {
    TensorType.Q2_K: TensorType.Q4_0,
    TensorType.Q3_K: TensorType.Q4_0,
    TensorType.Q4_K: TensorType.Q5_0,
    TensorType.Q5_K: TensorType.Q5_1,
    TensorType.Q6_K: TensorType.Q8_0,
    TensorType.IQ4_XS: TensorType.IQ4_NL,
}

_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


def choose_types(recipe: Recipe, spec: ModelSpec, tensors: Sequence[TensorRef]) -> dict[str, TensorType]:
    """The type of every tensor of a model, by name.

    Args:
        recipe: one of RECIPES.
        spec: the model; its layers, heads, kv_heads and architecture decide.
        tensors: all of the model's, under their GGUF names.
    """
    output = OUTPUT if any(tensor.name == OUTPUT for tensor in tensors) else EMBEDDING
    return {tensor.name: _choose(recipe, spec, tensor, output) for tensor in tensors}


def _choose(recipe: Recipe, spec: ModelSpec, tensor: TensorRef, output: str) -> TensorType:
    if not _is_weight_matrix(tensor):
        return TensorType.F32
    if block_elements(recipe.default) == 1:
        return recipe.default
    if tensor.name == output:
        wanted = TensorType.Q8_0 if recipe.default is TensorType.Q8_0 else TensorType.Q6_K
    else:
        wanted = _by_rules(recipe, spec, tensor.name)
    return _fitting(wanted, tensor.shape[-1])


def _is_weight_matrix(tensor: TensorRef) -> bool:
    more_than_a_row = tensor.elements > tensor.shape[-1]
    return more_than_a_row and tensor.name.endswith(".weight") and not tensor.name.endswith("_norm.weight")


def _by_rules(recipe: Recipe, spec: ModelSpec, name: str) -> TensorType:
    match = _LAYER_TENSOR.fullmatch(name)
    if match is None:
        return recipe.default
    layer, stem = int(match[1]), match[2]
    chosen = next((kind for when, kind in recipe.rules.get(stem, ()) if when(layer, spec)), recipe.default)
    return _VALUES_OF_70B.get(chosen, chosen) if stem == "attn_v" and _is_70b(spec) else chosen


def _is_70b(spec: ModelSpec) -> bool:
    """What llama.cpp calls LLM_TYPE_70B (src/models/llama.cpp, src/models/qwen2.cpp)."""
    return spec.layers == 80 and (spec.architecture == "qwen2" or spec.kv_heads != spec.heads)


def _fitting(wanted: TensorType, columns: int) -> TensorType:
    """`wanted`, or what tensors with rows of `columns` elements get in its place."""
    for kind in (wanted, _FALLBACK.get(wanted, wanted)):
        if columns % block_elements(kind) == 0:
            return kind
    return TensorType.F16
