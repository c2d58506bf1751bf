"""Recipes: which tensor of a model gets which type, exactly as llama_model_quantize chooses.

A recipe is a row of data: a default type, and rules for the tensors that deserve more bits (or bear
fewer). What no rule of any recipe speaks of holds for all: what is not a weight matrix stays F32, and a
tensor whose rows do not divide into the chosen type's blocks falls back to a type they do divide into.
`Scheme` is a recipe with what a user adds to it: an importance matrix, and types of their own choice.

Upstream: llama.cpp src/llama-quant.cpp (tensor_allows_quantization, llama_tensor_get_type_impl,
tensor_type_fallback, tensor_requires_imatrix); its rules count the tensors that have passed before, in
the order of layers and names, and so do these. Left out: ternary types and MXFP4, and the exceptions
made for architectures that pigguf does not know.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pigguf.architectures.hparams import HParams
from pigguf.common.lazy_tensor import LazyTensor
from pigguf.errors import UsageError
from pigguf.gguf_io import TensorType, block_elements
from pigguf.quantization.ggml_kernels import BLOCK_FORMATS, FLOATS, NEED_IMPORTANCE
from pigguf.quantization.imatrix_file import ImportanceMatrix

EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"

# Tensors with more than one row that stay F32 nonetheless: small, and dear.
_NEVER = re.compile(r"_norm\.weight|ffn_gate_inp\.weight|^(position_embd|token_types)\.weight$")

# What a tensor is for, by the first of these parts that its name holds.
_ROLES = {
    "attn_qkv.weight": "attn_v",
    "attn_kv_b.weight": "attn_v",
    "attn_v.weight": "attn_v",
    "attn_k.weight": "attn_k",
    "attn_q.weight": "attn_q",
    "attn_output.weight": "attn_output",
    "ffn_up": "ffn_up",
    "ffn_gate": "ffn_gate",
    "ffn_down": "ffn_down",
}


@dataclass(frozen=True)
class Place:
    """Where a tensor stands, as far as rules ask.

    Attributes:
        passed: how many tensors of its role came before it.
        layer: its layer, from 0; of one whose role every layer has once, it is `passed`.
        layers: how many layers have its role.
        hparams: the model.
        weighted: whether there is an importance matrix.
    """

    passed: int
    layer: int
    layers: int
    hparams: HParams
    weighted: bool


When = Callable[[Place], bool]
Rule = tuple[When, TensorType]
Rules = Mapping[str, tuple[Rule, ...]]


def always(place: Place) -> bool:
    return True


def both(one: When, other: When) -> When:
    return lambda place: one(place) and other(place)


def first_layers(count: int) -> When:
    return lambda place: place.layer < count


def first_part(parts: int) -> When:
    """Layers in the first 1/parts of the model, rounded down."""
    return lambda place: place.layer < place.layers // parts


def first_passed_part(parts: int) -> When:
    """As first_part, but each tensor counts as a layer, of which a layer of experts may have two."""
    return lambda place: place.passed < place.layers // parts


def middle(place: Place) -> bool:
    """All layers but the first and last eighth."""
    return place.layers // 8 <= place.layer < 7 * place.layers // 8


def outer_and_every_third(place: Place) -> bool:
    """The first and last eighth of the layers, and every third between (upstream: use_more_bits)."""
    return not middle(place) or (place.layer - place.layers // 8) % 3 == 2


def few_value_heads(place: Place) -> bool:
    """Four or more query heads share a value head, which makes attn_v small and dear."""
    return place.hparams.kv_heads > 0 and place.hparams.heads // place.hparams.kv_heads >= 4


def few_values(place: Place) -> bool:
    """attn_v is small beside the rest: few value heads, or four experts and more."""
    return few_value_heads(place) or place.hparams.experts >= 4


def eight_experts(place: Place) -> bool:
    """Mixtral, beside whose experts attention is small."""
    return place.hparams.experts == 8


def falcon(place: Place) -> bool:
    return place.hparams.architecture == "falcon"


def not_falcon(place: Place) -> bool:
    return not falcon(place)


def of_70b(place: Place) -> bool:
    """What llama.cpp calls LLM_TYPE_70B (src/models/llama.cpp, qwen2.cpp): attn_v is nearly free there."""
    hparams = place.hparams
    shared_values = hparams.architecture == "llama" and hparams.kv_heads != hparams.heads
    return hparams.layers == 80 and (hparams.architecture == "qwen2" or shared_values)


def weighted(place: Place) -> bool:
    return place.weighted


def unweighted(place: Place) -> bool:
    return not place.weighted


@dataclass(frozen=True)
class Recipe:
    """One value of --type.

    Attributes:
        name: as the user writes it.
        file_type: general.file_type, a number of llama.h's enum llama_ftype.
        default: the type of every matrix that no rule speaks of.
        bits_per_weight: of Llama 3.1 8B, with an importance matrix where one is needed; others are near it.
        description: for the help text.
        rules: by role ("attn_v"), types with conditions; the first that holds wins. "output" is the output
            matrix, or the embedding that serves as one; "token_embd" an embedding that does not.
        dear: matrices of this type need an importance matrix, though the type itself does not.
    """

    name: str
    file_type: int
    default: TensorType
    bits_per_weight: float
    description: str
    rules: Rules = field(default_factory=dict)
    dear: TensorType | None = None


_Q2_K, _Q3_K, _Q4_K, _Q5_K = TensorType.Q2_K, TensorType.Q3_K, TensorType.Q4_K, TensorType.Q5_K
_Q6_K, _Q8_0, _IQ3_S = TensorType.Q6_K, TensorType.Q8_0, TensorType.IQ3_S

_OF_8 = (eight_experts, _Q8_0)
_OF_70B = (of_70b, _Q5_K)
_FEW_VALUES: tuple[Rule, ...] = (
    _OF_8,
    (both(few_value_heads, of_70b), _Q5_K),
    (few_value_heads, _Q4_K),
)
_USUAL: Rules = {"output": ((always, _Q6_K),), "attn_v": (_OF_8,), "attn_k": (_OF_8,)}
_8_EXPERTS_OUT: tuple[Rule, ...] = ((eight_experts, _Q5_K),)

_Q5_K_M: Rules = {
    **_USUAL,
    "attn_v": (_OF_8, (outer_and_every_third, _Q6_K)),
    "ffn_down": ((outer_and_every_third, _Q6_K),),
}
_Q4_K_M: Rules = {
    **_USUAL,
    "attn_v": (_OF_8, (outer_and_every_third, _Q6_K), _OF_70B),
    "attn_output": _8_EXPERTS_OUT,
    "ffn_down": (
        (both(falcon, first_part(16)), _Q6_K),
        (both(falcon, outer_and_every_third), _Q5_K),
        (both(not_falcon, outer_and_every_third), _Q6_K),
    ),
}
_Q4_K_S: Rules = {
    **_USUAL,
    "attn_v": (_OF_8, _OF_70B, (first_layers(4), _Q5_K)),
    "attn_output": _8_EXPERTS_OUT,
    "ffn_down": ((both(not_falcon, first_part(8)), _Q5_K),),
}
_IQ4: Rules = {
    **_USUAL,
    "attn_v": (_OF_8, (few_value_heads, _Q5_K)),
    "attn_output": _8_EXPERTS_OUT,
    "ffn_down": ((both(unweighted, first_part(8)), _Q5_K),),
}
_Q3_K_L: Rules = {
    **_USUAL,
    "attn_v": (_OF_8, (always, _Q5_K)),
    "attn_output": ((falcon, _Q4_K), (eight_experts, _Q3_K), (always, _Q5_K)),
    "ffn_down": ((falcon, _Q4_K), (always, _Q5_K)),
}
_Q3_K_M: Rules = {
    **_USUAL,
    "attn_v": (_OF_8, _OF_70B, (first_layers(2), _Q5_K), (always, _Q4_K)),
    "attn_output": ((falcon, _Q3_K), (eight_experts, _Q5_K), (always, _Q4_K)),
    "ffn_down": ((first_part(16), _Q5_K), (not_falcon, _Q4_K), (outer_and_every_third, _Q4_K)),
}
_Q3_K_S: Rules = {**_USUAL, "attn_v": (_OF_8, _OF_70B), "attn_output": _8_EXPERTS_OUT}
_IQ3_M: Rules = {
    **_USUAL,
    "attn_v": (_OF_8, _OF_70B, (always, _Q4_K)),
    "attn_output": ((falcon, _IQ3_S), (eight_experts, _Q5_K), (always, _Q4_K)),
    "ffn_down": ((first_part(8), _Q4_K), (both(eight_experts, outer_and_every_third), _Q4_K)),
}
_IQ3_S_: Rules = {**_USUAL, "attn_v": _FEW_VALUES, "attn_output": _8_EXPERTS_OUT}
_IQ3_XS: Rules = {
    **_IQ3_S_,
    "attn_k": (_OF_8, (always, TensorType.IQ3_XXS)),
    "attn_q": ((always, TensorType.IQ3_XXS),),
    "ffn_gate": ((middle, TensorType.IQ3_XXS),),
    "ffn_up": ((middle, TensorType.IQ3_XXS),),
}
_IQ3_XXS: Rules = {
    "output": ((always, _Q5_K),),
    "token_embd": ((always, _IQ3_S),),
    "attn_v": (*_FEW_VALUES, (unweighted, _IQ3_S)),
    "attn_k": (_OF_8, (always, TensorType.IQ2_S)),
    "attn_q": ((always, TensorType.IQ2_S),),
    "attn_output": ((falcon, TensorType.IQ3_XXS), (eight_experts, _Q5_K), (always, _IQ3_S)),
    "ffn_down": ((both(unweighted, first_part(8)), _Q4_K), (unweighted, _Q3_K)),
}
_Q2_K_: Rules = {
    **_USUAL,
    "attn_v": (_OF_8, _OF_70B, (few_value_heads, _Q4_K), (always, _Q3_K)),
    "attn_output": ((falcon, _Q2_K), (eight_experts, _Q5_K), (always, _Q3_K)),
    "ffn_down": ((always, _Q3_K),),
}
_Q2_K_S: Rules = {**_USUAL, "attn_v": _FEW_VALUES, "ffn_down": ((first_part(8), _Q4_K),)}


def _lowest(more: TensorType, attn_output: tuple[Rule, ...] = (), embedding: TensorType = _Q2_K) -> Rules:
    """Rules of the types below three bits; `more` is what their dearer tensors get."""
    return {
        "output": ((always, _Q5_K),),
        "token_embd": ((always, embedding),),
        "attn_v": ((few_values, _Q4_K), (always, more)),
        "attn_k": ((eight_experts, _Q4_K),),
        "attn_output": ((eight_experts, _Q5_K), *attn_output),
        "ffn_down": ((first_passed_part(8), more),),
    }


_IQ2: Rules = _lowest(_Q2_K)
_IQ2_M: Rules = _lowest(_IQ3_S, ((always, _IQ3_S),), _IQ3_S)
_IQ1: Rules = _lowest(_Q2_K, ((always, TensorType.IQ2_XXS),))

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("F32", 0, TensorType.F32, 32.0, "full precision"),
        Recipe("F16", 1, TensorType.F16, 16.0, "half precision"),
        Recipe("BF16", 32, TensorType.BF16, 16.0, "as most checkpoints are stored"),
        Recipe("Q8_0", 7, _Q8_0, 8.5, "hardly to be told from F16"),
        Recipe("Q6_K", 18, _Q6_K, 6.6, "very small loss", _USUAL),
        Recipe("Q5_K_M", 17, _Q5_K, 5.7, "small loss", _Q5_K_M),
        Recipe("Q5_K_S", 16, _Q5_K, 5.6, "small loss, a little smaller", _USUAL),
        Recipe("Q4_K_M", 15, _Q4_K, 4.9, "the usual choice", _Q4_K_M),
        Recipe("Q4_K_S", 14, _Q4_K, 4.7, "the usual choice, a little smaller", _Q4_K_S),
        Recipe("IQ4_NL", 25, TensorType.IQ4_NL, 4.7, "as Q4_K_S, for rows of 32", _IQ4),
        Recipe("IQ4_XS", 30, TensorType.IQ4_XS, 4.5, "smaller than Q4_K_S, much the same loss", _IQ4),
        Recipe("Q3_K_L", 13, _Q3_K, 4.3, "some loss", _Q3_K_L),
        Recipe("Q3_K_M", 12, _Q3_K, 4.0, "noticeable loss", _Q3_K_M),
        Recipe("IQ3_M", 27, _IQ3_S, 3.8, "less loss than Q3_K_M, smaller", _IQ3_M),
        Recipe("IQ3_S", 26, _IQ3_S, 3.7, "as IQ3_M, a little smaller", _IQ3_S_),
        Recipe("Q3_K_S", 11, _Q3_K, 3.6, "noticeable loss, smaller", _Q3_K_S),
        Recipe("IQ3_XS", 22, _IQ3_S, 3.5, "noticeable loss; needs --imatrix", _IQ3_XS),
        Recipe("IQ3_XXS", 23, TensorType.IQ3_XXS, 3.3, "noticeable loss; needs --imatrix", _IQ3_XXS),
        Recipe("Q2_K", 10, _Q2_K, 3.2, "great loss", _Q2_K_),
        Recipe("Q2_K_S", 21, _Q2_K, 3.0, "great loss; needs --imatrix", _Q2_K_S, dear=_Q2_K),
        Recipe("IQ2_M", 29, TensorType.IQ2_S, 2.9, "great loss; needs --imatrix", _IQ2_M),
        Recipe("IQ2_S", 28, TensorType.IQ2_XS, 2.7, "great loss; needs --imatrix", _IQ2_M),
        Recipe("IQ2_XS", 20, TensorType.IQ2_XS, 2.6, "great loss; needs --imatrix", _IQ2),
        Recipe("IQ2_XXS", 19, TensorType.IQ2_XXS, 2.4, "very great loss; needs --imatrix", _IQ2),
        Recipe("IQ1_M", 31, TensorType.IQ1_M, 2.1, "the edge of sense; needs --imatrix", _IQ1),
        Recipe("IQ1_S", 24, TensorType.IQ1_S, 2.0, "the smallest; needs --imatrix", _IQ1),
        Recipe("Q5_1", 9, TensorType.Q5_1, 6.0, "simple blocks of 32, for old engines", _USUAL),
        Recipe("Q5_0", 8, TensorType.Q5_0, 5.6, "simple blocks of 32, for old engines", {
            **_USUAL, "ffn_down": ((both(weighted, first_part(8)), TensorType.Q5_1),)
        }),
        Recipe("Q4_1", 3, TensorType.Q4_1, 5.1, "simple blocks of 32, for old engines", _USUAL),
        Recipe("Q4_0", 2, TensorType.Q4_0, 4.6, "simple blocks of 32, fast on ARM", {
            **_USUAL, "ffn_down": ((both(weighted, first_part(8)), TensorType.Q4_1),)
        }),
    )
}  # fmt: skip

# For rows that are not whole blocks of 256. F16 where they are not whole blocks of 32 either.
_FALLBACK = {
    **dict.fromkeys(
        (
            *(TensorType.IQ1_S, TensorType.IQ1_M, TensorType.IQ2_XXS, TensorType.IQ2_XS),
            *(TensorType.IQ2_S, TensorType.IQ3_XXS, TensorType.IQ3_S, TensorType.IQ4_XS),
        ),
        TensorType.IQ4_NL,
    ),
    _Q2_K: TensorType.Q4_0,
    _Q3_K: TensorType.Q4_0,
    _Q4_K: TensorType.Q5_0,
    _Q5_K: TensorType.Q5_1,
    _Q6_K: _Q8_0,
}

# Matrices of these types are noise where nothing says which of their columns matter. Of embedding and
# output, whose inputs are not measured, the format alone decides.
_DEAR = frozenset(
    {
        *(TensorType.IQ1_S, TensorType.IQ1_M, TensorType.IQ2_XXS, TensorType.IQ2_XS),
        *(TensorType.IQ2_S, TensorType.IQ3_XXS),
    }
)

_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class Override:
    """A type of the user's choice: tensors whose name the pattern is found in get it."""

    pattern: re.Pattern[str]
    type: TensorType


@dataclass(frozen=True)
class Scheme:
    """How a model is to be quantized.

    Attributes:
        recipe: one of RECIPES.
        matrix: which columns matter, or None.
        overrides: types of the user's choice; of those that speak of a tensor the first wins.
    """

    recipe: Recipe
    matrix: ImportanceMatrix | None = None
    overrides: tuple[Override, ...] = ()


@dataclass(frozen=True)
class Choice:
    """The type of a tensor, and the one it would have if its rows were whole blocks of that."""

    type: TensorType
    wanted: TensorType

    @property
    def fell_back(self) -> bool:
        return self.type is not self.wanted


def read_overrides(overrides: Mapping[str, str]) -> tuple[Override, ...]:
    """Patterns and names of types, as llama-quantize's --tensor-type takes them.

    Raises:
        UsageError: no such type, or a pattern that is no regular expression.
    """
    return tuple(_override(pattern, name) for pattern, name in overrides.items())


def _override(pattern: str, name: str) -> Override:
    types = {kind.name: kind for kind in (*FLOATS, *sorted(BLOCK_FORMATS))}
    if name.upper() not in types:
        names = ", ".join(known.lower() for known in types)
        raise UsageError(f"there is no tensor type {name!r} (for {pattern!r})", f"types are {names}")
    try:
        return Override(re.compile(pattern, re.IGNORECASE), types[name.upper()])
    except re.error as error:
        raise UsageError(
            f"the tensor pattern {pattern!r} is no regular expression: {error}",
            'write it as in --tensor-type "ffn_down=q6_k" or "blk\\.[0-3]\\.attn_v=q8_0"',
        ) from error


def choose_types(scheme: Scheme, hparams: HParams, tensors: Sequence[LazyTensor]) -> dict[str, Choice]:
    """The type of every tensor of a model, by name.

    Args:
        scheme: how.
        hparams: the model; its layers, heads, kv_heads, experts and architecture decide.
        tensors: all of the model's, under their GGUF names.

    Raises:
        UsageError: a type needs an importance matrix and there is none, or it lacks a tensor; a matrix of
            another model; an override that has nothing to say.
    """
    matrices = [tensor for tensor in tensors if _is_weight_matrix(tensor)]
    if scheme.matrix is not None:
        scheme.matrix.refuse_misfit(tensors)
    _refuse_idle(scheme, matrices)
    chooser = _Chooser(scheme, hparams, [tensor.name for tensor in tensors])
    # as upstream orders them, for its rules count
    chosen = {tensor.name: chooser.choose(tensor) for tensor in sorted(matrices, key=_layer_and_name)}
    for tensor in matrices:
        _refuse_unweighted(scheme, tensor.name, chosen[tensor.name].type)
    f32 = Choice(TensorType.F32, TensorType.F32)
    return {tensor.name: chosen.get(tensor.name, f32) for tensor in tensors}


class _Chooser:
    """Chooses types one tensor after another, and counts them by role."""

    def __init__(self, scheme: Scheme, hparams: HParams, names: Iterable[str]) -> None:
        self.scheme = scheme
        self.hparams = hparams
        roles = [_role(name) for name in names]
        self.tied = "output" not in roles
        self.values = roles.count("attn_v")
        self.passed: Counter[str] = Counter()

    def choose(self, tensor: LazyTensor) -> Choice:
        default = self.scheme.recipe.default
        if block_elements(default) == 1:
            return Choice(default, default)
        override = next((o for o in self.scheme.overrides if o.pattern.search(tensor.name)), None)
        if override is not None:
            return _fitting(override.type, tensor)
        role = _role(tensor.name)
        if role == "output" or (role == "token_embd" and self.tied):
            return self._output(tensor)
        wanted = self._by_rules(role, self._place(role, tensor.name))
        self.passed[role] += 1
        return _fitting(wanted, tensor)

    def _place(self, role: str, name: str) -> Place:
        layer = passed = self.passed[role]
        if self.hparams.experts > 1 and role.startswith("ffn"):
            layer = _layer_and_name_of(name)[0]
        layers = self.values if role == "attn_v" else self.hparams.layers
        return Place(passed, layer, layers, self.hparams, self.scheme.matrix is not None)

    def _by_rules(self, role: str, place: Place) -> TensorType:
        recipe = self.scheme.recipe
        return next((kind for when, kind in recipe.rules.get(role, ()) if when(place)), recipe.default)

    def _output(self, tensor: LazyTensor) -> Choice:
        wanted = self._by_rules("output", self._place("output", tensor.name))
        if self.hparams.architecture == "falcon":
            wanted = _Q8_0
        elif tensor.shape[-1] % block_elements(self.scheme.recipe.default):
            return Choice(_fitting(_Q8_0, tensor).type, wanted)
        return _fitting(wanted, tensor)


def _role(name: str) -> str:
    """A name of a recipe's rules, or "" for a tensor that none speaks of."""
    if name in (EMBEDDING, OUTPUT):
        return name.removesuffix(".weight")
    return next((role for part, role in _ROLES.items() if part in name), "")


def _is_weight_matrix(tensor: LazyTensor) -> bool:
    more_than_a_row = tensor.elements > tensor.shape[-1]
    return more_than_a_row and tensor.name.endswith("weight") and not _NEVER.search(tensor.name)


def _layer_and_name(tensor: LazyTensor) -> tuple[int, str]:
    return _layer_and_name_of(tensor.name)


def _layer_and_name_of(name: str) -> tuple[int, str]:
    """A key to sort by: what is of no layer comes first."""
    match = _LAYER.match(name)
    return int(match[1]) if match else -1, name


def _fitting(wanted: TensorType, tensor: LazyTensor) -> Choice:
    """`wanted`, or what a tensor with such rows gets in its place."""
    columns = tensor.shape[-1]
    fitting = (
        kind for kind in (wanted, _FALLBACK.get(wanted, wanted)) if columns % block_elements(kind) == 0
    )
    return Choice(next(fitting, TensorType.F16), wanted)


def _refuse_idle(scheme: Scheme, matrices: Sequence[LazyTensor]) -> None:
    """
    Raises:
        UsageError: an override without effect.
    """
    if scheme.overrides and block_elements(scheme.recipe.default) == 1:
        raise UsageError(
            f"types of single tensors have no effect with --type {scheme.recipe.name}",
            "take a type that quantizes, such as Q8_0, and name the tensors that are to stay f16",
        )
    for override in scheme.overrides:
        if not any(override.pattern.search(tensor.name) for tensor in matrices):
            raise UsageError(
                f"the tensor pattern {override.pattern.pattern!r} is found in no matrix of the model",
                'matrices are named as in "blk.0.attn_v.weight" or "token_embd.weight"; norms stay F32',
            )


def _refuse_unweighted(scheme: Scheme, name: str, kind: TensorType) -> None:
    """
    Raises:
        UsageError: the tensor's type cannot do without an importance that is not there.
    """
    dear = name not in (EMBEDDING, OUTPUT) and (kind in _DEAR or kind == scheme.recipe.dear)
    if not dear and kind not in NEED_IMPORTANCE:
        return
    if scheme.matrix is None:
        raise UsageError(
            f"{scheme.recipe.name} makes {name} {kind.name}, which needs an importance matrix",
            "make one with `pigguf imatrix MODEL --text FILE`, and give it with --imatrix",
        )
    if name not in scheme.matrix.weights:
        raise UsageError(
            f"{scheme.matrix.path} has no entry for {name}, which is to become {kind.name}",
            "make the matrix of this very model with `pigguf imatrix`, or give the tensor a larger type "
            "with --tensor-type",
        )
