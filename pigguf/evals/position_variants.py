"""Position variants: the same model file under other rope settings, as runtime overrides.

    parse_variants(["none", "yarn:4"], read_header(path), window=32768)
    -> (PositionVariant("as shipped"), PositionVariant("none", ...), PositionVariant("yarn:4", ...))

This repeats the comparison of the Position Interpolation paper (arXiv 2306.15595, Section 3) on any model. A
name is METHOD or METHOD:FACTOR. Without a factor, it is the one that extends the file's original context
window to the requested window:

    none       direct extrapolation: positions unscaled, whatever the file states
    linear:F   Position Interpolation: position m becomes m / F
    yarn:F     YaRN (arXiv 2309.00071) from the file's original window
    ntk:F      NTK-aware scaling: rope theta becomes theta * F^(d / (d - 2)), with d the head dimension

llama.cpp's YaRN is that of transformers with its defaults: beta_fast 32 and beta_slow 1, the ends of the ramp
rounded outwards (`truncate`), cos and sin multiplied by 0.1 ln F + 1 (`attention_factor`).
src/llama-context.cpp divides by that factor once, because rope_yarn in ggml-cpu/ops.cpp multiplies by it.

Not supported: ALiBi and learned positions, which are not rotary, and files that scale each frequency by its
own factor (rope_freqs.weight of Llama 3.1), which no runtime override can undo.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pigguf.errors import UsageError
from pigguf.gguf_io import GGUFFile
from pigguf.inference.engine import RuntimeRope
from pigguf.inference.engine.file_checks import check_loadable
from pigguf.rope import Positions, RopeScaling, rope_from_metadata
from pigguf.rope.rope_scaling import DEFAULT_ROPE_THETA

AS_SHIPPED = "as shipped"
_FREQ_FACTOR_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True)
class PositionVariant:
    """Rope settings under which a model file is evaluated.

    Attributes:
        name: how tables and the journal name it, such as "linear:4"; "as shipped" is the file's own.
        rope: the runtime override; None for the file's own settings.
    """

    name: str = AS_SHIPPED
    rope: RuntimeRope | None = None


def _ntk(factor: float, rope_theta: float, head_dim: int) -> RuntimeRope:
    return RuntimeRope(factor=1.0, theta=ntk_rope_theta(rope_theta, factor, head_dim), scaling_type="linear")


# method -> the override for a factor, the file's rope theta and its head dimension
VARIANT_METHODS: dict[str, Callable[[float, float, int], RuntimeRope]] = {
    "none": lambda factor, rope_theta, head_dim: RuntimeRope(factor=1.0, scaling_type="linear"),
    "linear": lambda factor, rope_theta, head_dim: RuntimeRope(factor=factor, scaling_type="linear"),
    "yarn": lambda factor, rope_theta, head_dim: RuntimeRope(factor=factor, scaling_type="yarn"),
    "ntk": _ntk,
}
VARIANT_SYNTAX = (
    "none, linear:F, yarn:F, ntk:F, with a factor F of 1 or more, or without it to reach the window"
)


def ntk_rope_theta(rope_theta: float, factor: float, head_dim: int) -> float:
    """Return the rope theta that divides the lowest frequency by `factor` and keeps the highest.

    Raises:
        UsageError: if the heads have 2 dimensions, and so a single frequency.
    """
    if head_dim <= 2:
        raise UsageError(
            "NTK-aware scaling does not apply to heads of 2 dimensions", "leave the variant ntk out"
        )
    exponent: float = head_dim / (head_dim - 2)
    return rope_theta * math.pow(factor, exponent)


def parse_variants(names: Sequence[str], file: GGUFFile, window: int) -> tuple[PositionVariant, ...]:
    """Return the file as shipped, followed by the named variants in their order.

    Args:
        names: such as "none", "linear:4" or "yarn".
        file: the header of the model file.
        window: the longest context that will be evaluated, in tokens; each variant allows it.

    Raises:
        UsageError: if a name is not valid, a variant is given twice, or no override can replace the file's
            rope settings.
    """
    if not names:
        return (PositionVariant(),)
    check_rope_replaceable(file)
    file_rope = rope_from_metadata(file.metadata, file.architecture)
    variants = [PositionVariant()]
    for name in names:
        variant = _parse_variant(name, file_rope, check_loadable(file).head_dim, window)
        if variant in variants:
            raise UsageError(f"the variant {variant.name} is given twice", "give each variant once")
        if variant.rope is not None:
            variant.rope.metadata(file)  # raises before anything is computed
        variants.append(variant)
    return tuple(variants)


def check_rope_replaceable(file: GGUFFile) -> None:
    """Raise if the file scales each rope frequency by its own factor, which no override can undo.

    Raises:
        UsageError: if the file has a tensor of frequency factors.
    """
    for name in _FREQ_FACTOR_TENSORS:
        if name in file.tensors:
            raise UsageError(
                f"{file.path} divides each rope frequency by its own factor in {name}, which no override "
                "can undo, so other scalings cannot be evaluated on it",
                "evaluate it as shipped",
            )


def _parse_variant(name: str, file_rope: Positions, head_dim: int, window: int) -> PositionVariant:
    method, colon, number = name.partition(":")
    if method not in VARIANT_METHODS or (method == "none" and colon):
        raise UsageError(f"unknown position variant {name!r}", f"use {VARIANT_SYNTAX}")
    factor = _parse_factor(name, number) if colon else max(1.0, window / file_rope.original_context)
    theta = file_rope.rope_theta if isinstance(file_rope, RopeScaling) else DEFAULT_ROPE_THETA
    override = VARIANT_METHODS[method](factor, theta, head_dim)
    variant_name = "none" if method == "none" else f"{method}:{factor:g}"
    return PositionVariant(variant_name, replace(override, context_length=window))


def _parse_factor(name: str, number: str) -> float:
    try:
        factor = float(number)
    except ValueError:
        factor = math.nan
    if not 1 <= factor < math.inf:
        raise UsageError(
            f"the factor of the position variant {name!r} is not a number of 1 or more",
            f"use {VARIANT_SYNTAX}",
        )
    return factor
