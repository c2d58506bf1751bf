"""Quantization recipes: which tensor of a model gets which type, exactly as llama_model_quantize chooses.

A recipe is data: a default type, and rules for the roles of tensors that need more bits (or fewer). What
holds for all recipes is in choose_tensor_types.py.

Upstream: llama.cpp src/llama-quant.cpp (llama_tensor_get_type_impl). Not here: ternary types and MXFP4, and
the exceptions for architectures that pigguf does not support.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pigguf.gguf_io import TensorType
from pigguf.quantization.recipe_conditions import (
    Condition,
    always,
    both,
    eight_experts,
    first_fraction,
    first_fraction_of_tensors,
    first_layers,
    gqa_4_or_4_experts,
    gqa_4_or_more,
    has_imatrix,
    is_70b,
    is_falcon,
    middle_layers,
    no_imatrix,
    not_falcon,
    use_more_bits,
)

Rule = tuple[Condition, TensorType]
RulesByRole = Mapping[str, tuple[Rule, ...]]


@dataclass(frozen=True)
class QuantizationRecipe:
    """A quantization type of a whole model, such as Q4_K_M.

    Attributes:
        name: its name, as users write it.
        file_type: general.file_type, a value of llama.h's enum llama_ftype.
        default_type: the type of every matrix that no rule applies to.
        bits_per_weight: of Llama 3.1 8B, with an importance matrix if one is needed; other models are close.
        description: for the help text.
        rules: by role ("attn_v"), conditions with types; the first condition that holds decides. "output" is
            the output matrix, or the embedding if it is tied; "token_embd" is an embedding that is not tied.
        needs_imatrix: a type whose matrices need an importance matrix in this recipe, though the type itself
            does not.
    """

    name: str
    file_type: int
    default_type: TensorType
    bits_per_weight: float
    description: str
    rules: RulesByRole = field(default_factory=dict)
    needs_imatrix: TensorType | None = None


_Q2_K, _Q3_K, _Q4_K, _Q5_K = TensorType.Q2_K, TensorType.Q3_K, TensorType.Q4_K, TensorType.Q5_K
_Q6_K, _Q8_0, _IQ3_S = TensorType.Q6_K, TensorType.Q8_0, TensorType.IQ3_S

_WITH_8_EXPERTS = (eight_experts, _Q8_0)
_IN_70B = (is_70b, _Q5_K)
_GQA_VALUES: tuple[Rule, ...] = (
    _WITH_8_EXPERTS,
    (both(gqa_4_or_more, is_70b), _Q5_K),
    (gqa_4_or_more, _Q4_K),
)
_COMMON: RulesByRole = {
    "output": ((always, _Q6_K),),
    "attn_v": (_WITH_8_EXPERTS,),
    "attn_k": (_WITH_8_EXPERTS,),
}
_OUTPUT_WITH_8_EXPERTS: tuple[Rule, ...] = ((eight_experts, _Q5_K),)

_Q5_K_M: RulesByRole = {
    **_COMMON,
    "attn_v": (_WITH_8_EXPERTS, (use_more_bits, _Q6_K)),
    "ffn_down": ((use_more_bits, _Q6_K),),
}
_Q4_K_M: RulesByRole = {
    **_COMMON,
    "attn_v": (_WITH_8_EXPERTS, (use_more_bits, _Q6_K), _IN_70B),
    "attn_output": _OUTPUT_WITH_8_EXPERTS,
    "ffn_down": (
        (both(is_falcon, first_fraction(16)), _Q6_K),
        (both(is_falcon, use_more_bits), _Q5_K),
        (both(not_falcon, use_more_bits), _Q6_K),
    ),
}
_Q4_K_S: RulesByRole = {
    **_COMMON,
    "attn_v": (_WITH_8_EXPERTS, _IN_70B, (first_layers(4), _Q5_K)),
    "attn_output": _OUTPUT_WITH_8_EXPERTS,
    "ffn_down": ((both(not_falcon, first_fraction(8)), _Q5_K),),
}
_IQ4: RulesByRole = {
    **_COMMON,
    "attn_v": (_WITH_8_EXPERTS, (gqa_4_or_more, _Q5_K)),
    "attn_output": _OUTPUT_WITH_8_EXPERTS,
    "ffn_down": ((both(no_imatrix, first_fraction(8)), _Q5_K),),
}
_Q3_K_L: RulesByRole = {
    **_COMMON,
    "attn_v": (_WITH_8_EXPERTS, (always, _Q5_K)),
    "attn_output": ((is_falcon, _Q4_K), (eight_experts, _Q3_K), (always, _Q5_K)),
    "ffn_down": ((is_falcon, _Q4_K), (always, _Q5_K)),
}
_Q3_K_M: RulesByRole = {
    **_COMMON,
    "attn_v": (_WITH_8_EXPERTS, _IN_70B, (first_layers(2), _Q5_K), (always, _Q4_K)),
    "attn_output": ((is_falcon, _Q3_K), (eight_experts, _Q5_K), (always, _Q4_K)),
    "ffn_down": ((first_fraction(16), _Q5_K), (not_falcon, _Q4_K), (use_more_bits, _Q4_K)),
}
_Q3_K_S: RulesByRole = {
    **_COMMON,
    "attn_v": (_WITH_8_EXPERTS, _IN_70B),
    "attn_output": _OUTPUT_WITH_8_EXPERTS,
}
_IQ3_M: RulesByRole = {
    **_COMMON,
    "attn_v": (_WITH_8_EXPERTS, _IN_70B, (always, _Q4_K)),
    "attn_output": ((is_falcon, _IQ3_S), (eight_experts, _Q5_K), (always, _Q4_K)),
    "ffn_down": ((first_fraction(8), _Q4_K), (both(eight_experts, use_more_bits), _Q4_K)),
}
_IQ3_S_: RulesByRole = {**_COMMON, "attn_v": _GQA_VALUES, "attn_output": _OUTPUT_WITH_8_EXPERTS}
_IQ3_XS: RulesByRole = {
    **_IQ3_S_,
    "attn_k": (_WITH_8_EXPERTS, (always, TensorType.IQ3_XXS)),
    "attn_q": ((always, TensorType.IQ3_XXS),),
    "ffn_gate": ((middle_layers, TensorType.IQ3_XXS),),
    "ffn_up": ((middle_layers, TensorType.IQ3_XXS),),
}
_IQ3_XXS: RulesByRole = {
    "output": ((always, _Q5_K),),
    "token_embd": ((always, _IQ3_S),),
    "attn_v": (*_GQA_VALUES, (no_imatrix, _IQ3_S)),
    "attn_k": (_WITH_8_EXPERTS, (always, TensorType.IQ2_S)),
    "attn_q": ((always, TensorType.IQ2_S),),
    "attn_output": ((is_falcon, TensorType.IQ3_XXS), (eight_experts, _Q5_K), (always, _IQ3_S)),
    "ffn_down": ((both(no_imatrix, first_fraction(8)), _Q4_K), (no_imatrix, _Q3_K)),
}
_Q2_K_: RulesByRole = {
    **_COMMON,
    "attn_v": (_WITH_8_EXPERTS, _IN_70B, (gqa_4_or_more, _Q4_K), (always, _Q3_K)),
    "attn_output": ((is_falcon, _Q2_K), (eight_experts, _Q5_K), (always, _Q3_K)),
    "ffn_down": ((always, _Q3_K),),
}
_Q2_K_S: RulesByRole = {**_COMMON, "attn_v": _GQA_VALUES, "ffn_down": ((first_fraction(8), _Q4_K),)}


def _below_3_bits(
    larger: TensorType, attn_output: tuple[Rule, ...] = (), embedding: TensorType = _Q2_K
) -> RulesByRole:
    """Return the rules of the types below three bits; `larger` is for the tensors that matter more."""
    return {
        "output": ((always, _Q5_K),),
        "token_embd": ((always, embedding),),
        "attn_v": ((gqa_4_or_4_experts, _Q4_K), (always, larger)),
        "attn_k": ((eight_experts, _Q4_K),),
        "attn_output": ((eight_experts, _Q5_K), *attn_output),
        "ffn_down": ((first_fraction_of_tensors(8), larger),),
    }


_IQ2: RulesByRole = _below_3_bits(_Q2_K)
_IQ2_M: RulesByRole = _below_3_bits(_IQ3_S, ((always, _IQ3_S),), _IQ3_S)
_IQ1: RulesByRole = _below_3_bits(_Q2_K, ((always, TensorType.IQ2_XXS),))

RECIPES: dict[str, QuantizationRecipe] = {
    recipe.name: recipe
    for recipe in (
        QuantizationRecipe("F32", 0, TensorType.F32, 32.0, "full precision"),
        QuantizationRecipe("F16", 1, TensorType.F16, 16.0, "half precision"),
        QuantizationRecipe("BF16", 32, TensorType.BF16, 16.0, "as most checkpoints are stored"),
        QuantizationRecipe("Q8_0", 7, _Q8_0, 8.5, "almost the same as F16"),
        QuantizationRecipe("Q6_K", 18, _Q6_K, 6.6, "very small loss", _COMMON),
        QuantizationRecipe("Q5_K_M", 17, _Q5_K, 5.7, "small loss", _Q5_K_M),
        QuantizationRecipe("Q5_K_S", 16, _Q5_K, 5.6, "small loss, a little smaller", _COMMON),
        QuantizationRecipe("Q4_K_M", 15, _Q4_K, 4.9, "the usual choice", _Q4_K_M),
        QuantizationRecipe("Q4_K_S", 14, _Q4_K, 4.7, "the usual choice, a little smaller", _Q4_K_S),
        QuantizationRecipe("IQ4_NL", 25, TensorType.IQ4_NL, 4.7, "like Q4_K_S, for rows of 32", _IQ4),
        QuantizationRecipe(
            "IQ4_XS", 30, TensorType.IQ4_XS, 4.5, "smaller than Q4_K_S, about the same loss", _IQ4
        ),
        QuantizationRecipe("Q3_K_L", 13, _Q3_K, 4.3, "some loss", _Q3_K_L),
        QuantizationRecipe("Q3_K_M", 12, _Q3_K, 4.0, "noticeable loss", _Q3_K_M),
        QuantizationRecipe("IQ3_M", 27, _IQ3_S, 3.8, "less loss than Q3_K_M, smaller", _IQ3_M),
        QuantizationRecipe("IQ3_S", 26, _IQ3_S, 3.7, "like IQ3_M, a little smaller", _IQ3_S_),
        QuantizationRecipe("Q3_K_S", 11, _Q3_K, 3.6, "noticeable loss, smaller", _Q3_K_S),
        QuantizationRecipe("IQ3_XS", 22, _IQ3_S, 3.5, "noticeable loss; needs an imatrix", _IQ3_XS),
        QuantizationRecipe(
            "IQ3_XXS", 23, TensorType.IQ3_XXS, 3.3, "noticeable loss; needs an imatrix", _IQ3_XXS
        ),
        QuantizationRecipe("Q2_K", 10, _Q2_K, 3.2, "large loss", _Q2_K_),
        QuantizationRecipe(
            "Q2_K_S", 21, _Q2_K, 3.0, "large loss; needs an imatrix", _Q2_K_S, needs_imatrix=_Q2_K
        ),
        QuantizationRecipe("IQ2_M", 29, TensorType.IQ2_S, 2.9, "large loss; needs an imatrix", _IQ2_M),
        QuantizationRecipe("IQ2_S", 28, TensorType.IQ2_XS, 2.7, "large loss; needs an imatrix", _IQ2_M),
        QuantizationRecipe("IQ2_XS", 20, TensorType.IQ2_XS, 2.6, "large loss; needs an imatrix", _IQ2),
        QuantizationRecipe("IQ2_XXS", 19, TensorType.IQ2_XXS, 2.4, "very large loss; needs an imatrix", _IQ2),
        QuantizationRecipe("IQ1_M", 31, TensorType.IQ1_M, 2.1, "barely usable; needs an imatrix", _IQ1),
        QuantizationRecipe("IQ1_S", 24, TensorType.IQ1_S, 2.0, "the smallest; needs an imatrix", _IQ1),
        QuantizationRecipe("Q5_1", 9, TensorType.Q5_1, 6.0, "simple blocks of 32, for old engines", _COMMON),
        QuantizationRecipe("Q5_0", 8, TensorType.Q5_0, 5.6, "simple blocks of 32, for old engines", {
            **_COMMON, "ffn_down": ((both(has_imatrix, first_fraction(8)), TensorType.Q5_1),)
        }),
        QuantizationRecipe("Q4_1", 3, TensorType.Q4_1, 5.1, "simple blocks of 32, for old engines", _COMMON),
        QuantizationRecipe("Q4_0", 2, TensorType.Q4_0, 4.6, "simple blocks of 32, fast on ARM", {
            **_COMMON, "ffn_down": ((both(has_imatrix, first_fraction(8)), TensorType.Q4_1),)
        }),
    )
}  # fmt: skip
