"""Rotation: positions to cosines and sines, and heads turned by them, as ggml does it in single precision.

What ggml computes is followed to the rounding: an angle is multiplied up from pair to pair, so that at
position 30,000 it is a hundredth of a turn beside the exact one, and keys must lie as llama.cpp lays them.
Upstream: ggml/src/ggml-cpu/ops.cpp (ggml_rope_cache_init, rope_yarn), ggml.c (ggml_rope_yarn_corr_dims),
src/llama-context.cpp (yarn_attn_factor).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pigguf.rope import RopeScaling
from pigguf.rope.frequencies import Divisors, yarn_attention

_FAST, _SLOW = 32.0, 1.0  # beta_fast and beta_slow: graphs that read others are not computed here

Angles = NDArray[np.float32]


class Turns(NamedTuple):
    """What each pair of a head is turned by at each position: (positions, 1, pairs) float32."""

    cos: torch.Tensor
    sin: torch.Tensor


def turns(rope: RopeScaling, divisors: Divisors | None, head_dim: int, start: int, stop: int) -> Turns:
    """Those of the positions from start to stop - 1.

    Args:
        rope: of a kind in graph.ROPE_KINDS.
        divisors: of rope_freqs.weight, or None.
        head_dim: dimensions of a head, all of them turned.
    """
    angles = _angles(rope, divisors, head_dim, start, stop).astype(np.float64)
    scale = np.float32(rope.parameters.get("attn_factor", 1.0))
    if rope.kind == "yarn":
        scale *= np.float32(yarn_attention(rope.factor))
    cos, sin = (np.float32(scale) * part(angles).astype(np.float32) for part in (np.cos, np.sin))
    return Turns(torch.from_numpy(cos).unsqueeze(1), torch.from_numpy(sin).unsqueeze(1))


def turned(heads: torch.Tensor, by: Turns, *, neighbours: bool) -> torch.Tensor:
    """Heads turned to their positions.

    Args:
        heads: (positions, heads, dimensions) float32.
        neighbours: pairs are neighbouring dimensions; else they lie half a head apart.
    """
    result = torch.empty_like(heads)
    (x, y), (left, right) = (_pairs(tensor, neighbours) for tensor in (heads, result))
    torch.mul(x, by.cos, out=left).addcmul_(y, by.sin, value=-1)
    torch.mul(y, by.cos, out=right).addcmul_(x, by.sin)
    return result


def _pairs(heads: torch.Tensor, neighbours: bool) -> tuple[torch.Tensor, torch.Tensor]:
    half = heads.shape[-1] // 2
    if neighbours:
        return heads[..., ::2], heads[..., 1::2]
    return heads[..., :half], heads[..., half:]


def _angles(rope: RopeScaling, divisors: Divisors | None, head_dim: int, start: int, stop: int) -> Angles:
    """(positions, pairs)."""
    step = np.float32(math.pow(rope.base, np.float32(-2.0 / head_dim)))
    plain = np.empty((head_dim // 2, stop - start), np.float32)
    angle = np.arange(start, stop, dtype=np.float32)
    for pair in plain:
        pair[:] = angle
        angle = angle * step
    plain = plain.T
    if divisors is not None:
        plain = plain / divisors
    if rope.kind == "none":
        return plain
    stretched = np.float32(1.0 / np.float32(rope.factor)) * plain
    if rope.kind == "linear":
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
    return head_dim * math.log(rope.original_context / (times * 2 * math.pi)) / (2 * math.log(rope.base))
