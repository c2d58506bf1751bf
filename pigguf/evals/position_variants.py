"""Baselines: one file under several readings of positions, named as people compare them.

    compared(["none", "yarn:4"], read_header(path), window=32768)
    -> (Baseline("as shipped", None), Baseline("none", ...), Baseline("yarn:4", ...))

The paper's comparison (arXiv 2306.15595, Section 3) for anyone's model, with nothing but overrides at
run time. A name is METHOD or METHOD:FACTOR; without a factor, the one by which the file's original
window reaches the window asked for:

    none       direct extrapolation: positions as they are, whatever the file says
    linear:F   Position Interpolation: position m is read as m / F
    yarn:F     YaRN (arXiv 2309.00071) from the file's original window
    ntk:F      NTK-aware base: theta * F^(d / (d - 2)), d the dimensions of a head; positions as they are

llama.cpp's YaRN is transformers' with its defaults: beta 32 and 1, the ramp's ends rounded outwards
(`truncate`), cosine and sine times 0.1 ln F + 1 (`attention_factor`): src/llama-context.cpp takes that
factor out once, because ggml-cpu/ops.cpp, rope_yarn, puts it in.

Left out: ALiBi and learned positions, which are no rope, and files whose frequencies are divided one
by one (rope_freqs.weight, Llama 3.1): no override takes that back, so that no baseline would be what
it is called.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pigguf.errors import UsageError
from pigguf.gguf_io import GGUFFile
from pigguf.inference.engine import RuntimeRope
from pigguf.inference.engine.load_checks import check_loadable
from pigguf.rope import RopeScaling, rope_from_metadata

AS_SHIPPED = "as shipped"
_OWN_FREQUENCIES = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True)
class PositionVariant:
    """A reading of positions: its name in tables, and what the engine is told; None is nothing."""

    name: str
    rope: RuntimeRope | None = None


def _ntk(factor: float, base: float, head_length: int) -> RuntimeRope:
    return RuntimeRope(factor=1.0, theta=ntk_rope_theta(base, factor, head_length), scaling_type="linear")


# what a method tells the engine of a factor, the file's own base, and the length of a head
VARIANT_METHODS: dict[str, Callable[[float, float, int], RuntimeRope]] = {
    "none": lambda factor, base, head_length: RuntimeRope(factor=1.0, scaling_type="linear"),
    "linear": lambda factor, base, head_length: RuntimeRope(factor=factor, scaling_type="linear"),
    "yarn": lambda factor, base, head_length: RuntimeRope(factor=factor, scaling_type="yarn"),
    "ntk": _ntk,
}
VARIANT_SYNTAX = "none, linear:F, yarn:F, ntk:F, with F a factor from 1, or without it to reach the window"


def ntk_rope_theta(base: float, factor: float, head_length: int) -> float:
    """The rope base whose lowest frequency is divided by `factor` and whose highest is kept.

    Raises:
        UsageError: heads of 2 dimensions, which have one frequency.
    """
    if head_length <= 2:
        raise UsageError("heads of 2 dimensions have no NTK-aware base", "leave ntk out")
    exponent: float = head_length / (head_length - 2)
    return base * math.pow(factor, exponent)


def parse_variants(names: Sequence[str], file: GGUFFile, window: int) -> tuple[PositionVariant, ...]:
    """The file as shipped, then each of `names`, in order.

    Args:
        window: the longest context, in tokens, that will be asked of them; each permits it.

    Raises:
        UsageError: a name that says no baseline, or the same twice; a file whose positions no override
            can replace.
    """
    if not names:
        return (PositionVariant(AS_SHIPPED),)
    check_rope_replaceable(file)
    own = rope_from_metadata(file.metadata, file.architecture)
    baselines = [PositionVariant(AS_SHIPPED)]
    for name in names:
        baseline = _baseline(name, own, check_loadable(file).head_length, window)
        if baseline in baselines:
            raise UsageError(f"the baseline {baseline.name} is there twice", "name each once")
        if baseline.rope is not None:
            baseline.rope.metadata(file)  # refuses before anything is computed
        baselines.append(baseline)
    return tuple(baselines)


def check_rope_replaceable(file: GGUFFile) -> None:
    """
    Raises:
        UsageError: the file divides its frequencies one by one, which no override takes back.
    """
    for name in _OWN_FREQUENCIES:
        if name in file.tensors:
            raise UsageError(
                f"{file.path} divides each rope frequency by its own number in {name}, which no override "
                "takes back, so that no other scaling can be tried on it",
                "measure it as shipped",
            )


def _baseline(name: str, own: RopeScaling, head_length: int, window: int) -> PositionVariant:
    method, colon, number = name.partition(":")
    if method not in VARIANT_METHODS or (method == "none" and colon):
        raise UsageError(f"there is no baseline {name!r}", f"there are {VARIANT_SYNTAX}")
    factor = _factor(name, number) if colon else max(1.0, window / own.original_context)
    rope = replace(VARIANT_METHODS[method](factor, own.rope_theta, head_length), context_length=window)
    return PositionVariant("none" if method == "none" else f"{method}:{factor:g}", rope)


def _factor(name: str, number: str) -> float:
    try:
        factor = float(number)
    except ValueError:
        factor = math.nan
    if not 1 <= factor < math.inf:
        raise UsageError(f"the baseline {name!r} has no factor from 1", f"there are {VARIANT_SYNTAX}")
    return factor
