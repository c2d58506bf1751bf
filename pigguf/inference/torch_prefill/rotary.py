"""Rotation: positions to turns, and heads turned by them, as ggml does it in single precision.

What ggml computes is followed to the rounding: an angle is multiplied up from pair to pair, so that at
position 30,000 it is a hundredth of a turn beside the exact one, and keys must lie as llama.cpp lays them.
Upstream: ggml/src/ggml-cpu/ops.cpp (ggml_rope_cache_init, rope_yarn), ggml.c (ggml_rope_yarn_corr_dims),
src/llama-context.cpp (yarn_attn_factor).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from pigguf.rope import RopeScaling
from pigguf.rope.frequencies import Divisors, yarn_attention

_FAST, _SLOW = 32.0, 1.0  # beta_fast and beta_slow: graphs that read others are not computed here

Angles = NDArray[np.float32]


def turns(rope: RopeScaling, divisors: Divisors | None, head_dim: int, start: int, stop: int) -> torch.Tensor:
    """What each pair of a head is multiplied by at the positions from start to stop - 1, its two dimensions
    taken for a complex number: (positions, 1, pairs) complex64.

    Args:
        rope: of a kind in graph.ROPE_KINDS.
        divisors: of rope_freqs.weight, or None.
        head_dim: dimensions of a head, all of them turned.
    """
    angles = torch.from_numpy(_angles(rope, divisors, head_dim, start, stop)).double()
    size = np.float32(rope.parameters.get("attn_factor", 1.0))
    if rope.rope_type == "yarn":
        size *= np.float32(yarn_attention(rope.factor))
    return torch.polar(torch.full_like(angles, float(size)), angles).to(torch.complex64).unsqueeze(1)


def turned(heads: torch.Tensor, by: torch.Tensor, *, neighbours: bool) -> torch.Tensor:
    """Heads turned to their positions.

    Args:
        heads: (positions, heads, dimensions) float32.
        by: of the same positions.
        neighbours: pairs are neighbouring dimensions; else they lie half a head apart.
    """
    if neighbours:
        pairs = torch.view_as_complex(heads.view(*heads.shape[:2], -1, 2))
        return torch.view_as_real(pairs * by).flatten(-2)
    pairs = torch.complex(*heads.chunk(2, -1)) * by
    return torch.cat((pairs.real, pairs.imag), -1)


def _angles(rope: RopeScaling, divisors: Divisors | None, head_dim: int, start: int, stop: int) -> Angles:
    """(positions, pairs)."""
    step = np.float32(math.pow(rope.rope_theta, np.float32(-2.0 / head_dim)))
    plain = np.empty((head_dim // 2, stop - start), np.float32)
    angle = np.arange(start, stop, dtype=np.float32)
    for pair in plain:
        pair[:] = angle
        angle = angle * step
    plain = plain.T
    if divisors is not None:
        plain = plain / divisors
    if rope.rope_type == "none":
        return plain
    stretched = np.float32(1.0 / np.float32(rope.factor)) * plain
    if rope.rope_type == "linear":
        return stretched
    kept = _kept(rope, head_dim)
    mixed: Angles = stretched * (np.float32(1) - kept) + plain * kept
    return mixed


def _kept(rope: RopeScaling, head_dim: int) -> Angles:
    """YaRN: how much of each pair's own frequency is kept, 1 for the highest and 0 for the lowest."""
    low = max(0.0, math.floor(_pair_that_turns(_FAST, rope, head_dim)))
    high = min(head_dim - 1.0, math.ceil(_pair_that_turns(_SLOW, rope, head_dim)))
    ramp = (np.arange(head_dim // 2) - low) / max(0.001, high - low)
    kept: Angles = (1 - np.clip(ramp, 0, 1)).astype(np.float32)
    return kept


def _pair_that_turns(times: float, rope: RopeScaling, head_dim: int) -> float:
    """The pair, between pairs, that turns so many times within the original window."""
    return (
        head_dim * math.log(rope.original_context / (times * 2 * math.pi)) / (2 * math.log(rope.rope_theta))
    )
