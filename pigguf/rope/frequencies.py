"""Frequencies: what each kind of scaling beyond linear makes of them, as numbers and as a GGUF's tensors.

llama.cpp divides frequency i by element i of rope_freqs.weight, or of one of the two tensors of LongRoPE
(ggml-cpu/ops.cpp, ggml_rope_cache_init); YaRN it computes itself, and multiplies queries and keys by
1 + 0.1 ln(factor) for it (rope_yarn), and by scaling.attn_factor (src/llama-context.cpp). The other side
is transformers' modeling_rope_utils.py; the tensor of Llama 3 is made as conversion/llama.py makes it.

Left out: deciding which kind holds (decision.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FREQUENCIES, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
POSITION_TENSORS = (FREQUENCIES, LONG, SHORT)

Divisors = NDArray[np.float32]

# What published Llama 3 models have, from 3.1 on; their factor (8, 32) can be read off the tensor.
LLAMA3_ORIGINAL = 8192
LLAMA3_BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROUNDING = 1e-6  # relative: powers in single precision differ by a few last places between libraries


def single(value: float) -> float:
    """The number as a GGUF keeps it, in single precision."""
    return float(np.float32(value))


def llama3_divisors(
    base: float, factor: float, original: int, bands: Mapping[str, Any], rotary_dimensions: int
) -> Divisors:
    """By what Llama 3 divides each frequency: 1 for short waves, `factor` for long ones, between in between.

    A wave is short where more than high_freq_factor of it fit into the original window, and long where
    less than low_freq_factor do. In single precision, as llama.cpp's converter computes it.
    """
    low, high = bands["low_freq_factor"], bands["high_freq_factor"]
    exponents = np.arange(0, rotary_dimensions, 2, dtype=np.float32) / np.float32(rotary_dimensions)
    lengths = np.float32(2 * math.pi) / (np.float32(1) / np.float32(base) ** exponents)
    smooth = (np.float32(original) / lengths - np.float32(low)) / np.float32(high - low)
    between = np.float32(1) / ((np.float32(1) - smooth) / np.float32(factor) + smooth)
    short, long = lengths < original / high, lengths > original / low
    return np.where(short, np.float32(1), np.where(long, np.float32(factor), between)).astype(np.float32)


def llama3_from_divisors(divisors: Divisors, base: float, original: int | None) -> tuple[float, int] | None:
    """The factor and the original window of a Llama 3 that has these divisors, if there is one.

    Four numbers cannot be computed back from a tensor in general: the last divisor is the factor, the
    bands are those of all published models, and the whole must then come out as it is.
    """
    factor, original = float(divisors[-1]), original or LLAMA3_ORIGINAL
    if not (math.isfinite(factor) and factor >= 1.0):
        return None
    made = llama3_divisors(base, factor, original, LLAMA3_BANDS, 2 * len(divisors))
    return (factor, original) if np.allclose(made, divisors, rtol=ROUNDING, atol=0.0) else None


def longrope_attention(factor: float, original: int) -> float:
    """What LongRoPE multiplies queries and keys by, where a config does not say it."""
    return 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(original))


def yarn_attention(factor: float, weight: float = 1.0) -> float:
    """What YaRN multiplies queries and keys by; `weight` is a config's mscale."""
    return 1.0 if factor <= 1.0 else 1.0 + 0.1 * weight * math.log(factor)


def ntk_base(base: float, factor: float, original: int, context: int, rotary_dimensions: int) -> float:
    """The base that dynamic NTK scaling has for a text of `context` tokens."""
    stretch = max(1.0, factor * context / original - (factor - 1.0))
    return base * math.pow(stretch, rotary_dimensions / (rotary_dimensions - 2))


def as_divisors(values: Sequence[float]) -> Divisors:
    return np.array(values, dtype=np.float32)
