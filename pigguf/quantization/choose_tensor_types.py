"""The type of every tensor of a model, from a quantization recipe, an importance matrix and type overrides.

For all recipes: tensors that are not weight matrices stay F32, and a tensor whose rows are not a whole number
of the chosen type's blocks falls back to a type with smaller blocks.

Upstream: llama.cpp src/llama-quant.cpp (tensor_allows_quantization, llama_tensor_get_type_impl,
tensor_type_fallback, tensor_requires_imatrix).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pigguf.architectures.hparams import HParams
from pigguf.common.lazy_tensor import LazyTensor
from pigguf.errors import UsageError
from pigguf.gguf_io import TensorType, block_elements
from pigguf.quantization.ggml_kernels import FLOAT_DTYPES, NEED_IMATRIX, QUANTIZED_TYPES
from pigguf.quantization.imatrix_file import ImportanceMatrix
from pigguf.quantization.recipe_conditions import TensorPosition
from pigguf.quantization.recipes import QuantizationRecipe

EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"

# Matrices that stay F32: they are small, and matter.
_KEPT_F32 = re.compile(r"_norm\.weight|ffn_gate_inp\.weight|^(position_embd|token_types)\.weight$")

# The role of a tensor, by the first of these substrings that its name contains.
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

# For rows that are not whole blocks of 256; F16 if they are not whole blocks of 32 either.
_FALLBACK = {
    **dict.fromkeys(
        (
            *(TensorType.IQ1_S, TensorType.IQ1_M, TensorType.IQ2_XXS, TensorType.IQ2_XS),
            *(TensorType.IQ2_S, TensorType.IQ3_XXS, TensorType.IQ3_S, TensorType.IQ4_XS),
        ),
        TensorType.IQ4_NL,
    ),
    TensorType.Q2_K: TensorType.Q4_0,
    TensorType.Q3_K: TensorType.Q4_0,
    TensorType.Q4_K: TensorType.Q5_0,
    TensorType.Q5_K: TensorType.Q5_1,
    TensorType.Q6_K: TensorType.Q8_0,
}

# Matrices of these types are noise without an importance matrix. For the embedding and the output, whose
# inputs are not measured, only NEED_IMATRIX counts.
_NOISE_WITHOUT_IMATRIX = frozenset(
    {
        *(TensorType.IQ1_S, TensorType.IQ1_M, TensorType.IQ2_XXS, TensorType.IQ2_XS),
        *(TensorType.IQ2_S, TensorType.IQ3_XXS),
    }
)

_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class TypeOverride:
    """A type that the user chose for the tensors whose name matches a pattern."""

    pattern: re.Pattern[str]
    type: TensorType


@dataclass(frozen=True)
class QuantizationParams:
    """How a model is quantized.

    Attributes:
        recipe: one of RECIPES.
        imatrix: the importance matrix, or None.
        overrides: types that the user chose; the first whose pattern matches a tensor counts.
    """

    recipe: QuantizationRecipe
    imatrix: ImportanceMatrix | None = None
    overrides: tuple[TypeOverride, ...] = ()


@dataclass(frozen=True)
class TensorTypeChoice:
    """The type of a tensor.

    Attributes:
        type: the type it gets.
        preferred: the type it would have if its rows were whole blocks of that type.
    """

    type: TensorType
    preferred: TensorType

    @property
    def is_fallback(self) -> bool:
        """Whether the preferred type did not fit the tensor's rows."""
        return self.type is not self.preferred


def parse_type_overrides(overrides: Mapping[str, str]) -> tuple[TypeOverride, ...]:
    """Parse patterns with names of types, as llama-quantize's --tensor-type takes them.

    Raises:
        UsageError: a type does not exist, or a pattern is not a regular expression.
    """
    return tuple(_parse_type_override(pattern, name) for pattern, name in overrides.items())


def _parse_type_override(pattern: str, name: str) -> TypeOverride:
    types = {kind.name: kind for kind in (*FLOAT_DTYPES, *sorted(QUANTIZED_TYPES))}
    if name.upper() not in types:
        names = ", ".join(known.lower() for known in types)
        raise UsageError(f"there is no tensor type {name!r} (for {pattern!r})", f"types are {names}")
    try:
        return TypeOverride(re.compile(pattern, re.IGNORECASE), types[name.upper()])
    except re.error as error:
        raise UsageError(
            f"the tensor pattern {pattern!r} is not a regular expression: {error}",
            "for example `tensor_types=ffn_down=q6_k` or `tensor_types=blk\\.[0-3]\\.attn_v=q8_0`",
        ) from error


def choose_tensor_types(
    params: QuantizationParams, hparams: HParams, tensors: Sequence[LazyTensor]
) -> dict[str, TensorTypeChoice]:
    """Return the type of every tensor of a model, by name.

    Args:
        params: the recipe, the importance matrix and the type overrides.
        hparams: the model; its layers, heads, kv_heads, experts and architecture count.
        tensors: all tensors of the model, under their GGUF names.

    Raises:
        UsageError: a type needs an importance matrix and there is none, or it lacks a tensor; the importance
            matrix belongs to another model; or an override matches no matrix.
    """
    matrices = [tensor for tensor in tensors if _is_weight_matrix(tensor)]
    if params.imatrix is not None:
        params.imatrix.check_fits(tensors)
    _check_overrides(params, matrices)
    chooser = _TypeChooser(params, hparams, [tensor.name for tensor in tensors])
    # In upstream's order, because its rules count tensors.
    chosen = {tensor.name: chooser.choose(tensor) for tensor in sorted(matrices, key=_layer_and_name)}
    for tensor in matrices:
        _check_imatrix(params, tensor.name, chosen[tensor.name].type)
    f32 = TensorTypeChoice(TensorType.F32, TensorType.F32)
    return {tensor.name: chosen.get(tensor.name, f32) for tensor in tensors}


class _TypeChooser:
    """Chooses the types of tensors one after another, and counts the tensors of each role."""

    def __init__(self, params: QuantizationParams, hparams: HParams, names: Iterable[str]) -> None:
        self._params = params
        self._hparams = hparams
        roles = [_role(name) for name in names]
        self._is_tied = "output" not in roles
        self._n_attn_v = roles.count("attn_v")
        self._counts: Counter[str] = Counter()  # tensors chosen so far, by role

    def choose(self, tensor: LazyTensor) -> TensorTypeChoice:
        """Return the type of the next matrix."""
        default_type = self._params.recipe.default_type
        if block_elements(default_type) == 1:
            return TensorTypeChoice(default_type, default_type)
        override = next((o for o in self._params.overrides if o.pattern.search(tensor.name)), None)
        if override is not None:
            return _with_fallback(override.type, tensor)
        role = _role(tensor.name)
        if role == "output" or (role == "token_embd" and self._is_tied):
            return self._choose_output(tensor)
        preferred = self._apply_rules(role, self._position(role, tensor.name))
        self._counts[role] += 1
        return _with_fallback(preferred, tensor)

    def _position(self, role: str, name: str) -> TensorPosition:
        layer = n_before = self._counts[role]
        if self._hparams.experts > 1 and role.startswith("ffn"):
            layer = _layer_and_name_of(name)[0]
        n_layers = self._n_attn_v if role == "attn_v" else self._hparams.layers
        return TensorPosition(n_before, layer, n_layers, self._hparams, self._params.imatrix is not None)

    def _apply_rules(self, role: str, position: TensorPosition) -> TensorType:
        recipe = self._params.recipe
        matching = (kind for condition, kind in recipe.rules.get(role, ()) if condition(position))
        return next(matching, recipe.default_type)

    def _choose_output(self, tensor: LazyTensor) -> TensorTypeChoice:
        preferred = self._apply_rules("output", self._position("output", tensor.name))
        if self._hparams.architecture == "falcon":
            preferred = TensorType.Q8_0
        elif tensor.shape[-1] % block_elements(self._params.recipe.default_type):
            return TensorTypeChoice(_with_fallback(TensorType.Q8_0, tensor).type, preferred)
        return _with_fallback(preferred, tensor)


def _role(name: str) -> str:
    """Return the key of a recipe's rules for a tensor, or "" if no rule is for it."""
    if name in (EMBEDDING, OUTPUT):
        return name.removesuffix(".weight")
    return next((role for substring, role in _ROLES.items() if substring in name), "")


def _is_weight_matrix(tensor: LazyTensor) -> bool:
    has_rows = tensor.elements > tensor.shape[-1]
    return has_rows and tensor.name.endswith("weight") and not _KEPT_F32.search(tensor.name)


def _layer_and_name(tensor: LazyTensor) -> tuple[int, str]:
    return _layer_and_name_of(tensor.name)


def _layer_and_name_of(name: str) -> tuple[int, str]:
    """Return a sort key: tensors that belong to no layer come first."""
    match = _LAYER.match(name)
    return int(match[1]) if match else -1, name


def _with_fallback(preferred: TensorType, tensor: LazyTensor) -> TensorTypeChoice:
    """Return the preferred type, or its fallback if the tensor's rows are not whole blocks of it."""
    columns = tensor.shape[-1]
    candidates = (preferred, _FALLBACK.get(preferred, preferred))
    fitting = (kind for kind in candidates if columns % block_elements(kind) == 0)
    return TensorTypeChoice(next(fitting, TensorType.F16), preferred)


def _check_overrides(params: QuantizationParams, matrices: Sequence[LazyTensor]) -> None:
    """Raise UsageError if an override has no effect."""
    if params.overrides and block_elements(params.recipe.default_type) == 1:
        raise UsageError(
            f"types of single tensors have no effect with `type={params.recipe.name}`",
            "use a type that quantizes, such as Q8_0, and name the tensors that should stay f16",
        )
    for override in params.overrides:
        if not any(override.pattern.search(tensor.name) for tensor in matrices):
            raise UsageError(
                f"the tensor pattern {override.pattern.pattern!r} matches no matrix of the model",
                'matrices have names like "blk.0.attn_v.weight" or "token_embd.weight"; norms stay F32',
            )


def _check_imatrix(params: QuantizationParams, name: str, kind: TensorType) -> None:
    """Raise UsageError if the type of a tensor needs an importance matrix and has none."""
    needed = name not in (EMBEDDING, OUTPUT) and (
        kind in _NOISE_WITHOUT_IMATRIX or kind == params.recipe.needs_imatrix
    )
    if not needed and kind not in NEED_IMATRIX:
        return
    if params.imatrix is None:
        raise UsageError(
            f"{params.recipe.name} makes {name} {kind.name}, which needs an importance matrix",
            "compute one with `pigguf imatrix MODEL --text FILE`, and give it as `imatrix`",
        )
    if name not in params.imatrix.weights:
        raise UsageError(
            f"{params.imatrix.path} has no entry for {name}, which would be {kind.name}",
            "compute the imatrix of this model with `pigguf imatrix`, or give the tensor a larger type with "
            "`tensor_types`",
        )
