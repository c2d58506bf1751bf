"""RoPE in single precision, rounded as ggml rounds it.

ggml multiplies an angle up from pair to pair, so that at position 30,000 it is a hundredth of a full turn
away from the exact one; keys must be rotated as llama.cpp rotates them, so that is followed here.
Upstream: ggml/src/ggml-cpu/ops.cpp (ggml_rope_cache_init, rope_yarn), ggml.c (ggml_rope_yarn_corr_dims),
src/llama-context.cpp (yarn_attn_factor).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from pigguf.rope import LinearScaling, RopeScaling, UnscaledRope, YarnScaling
from pigguf.rope.rope_scaling import FreqFactors
from pigguf.rope.yarn import BETA_FAST, BETA_SLOW, yarn_attention

Angles = NDArray[np.float32]


def compute_freqs_cis(
    rope: RopeScaling, freq_factors: FreqFactors | None, head_dim: int, start: int, stop: int
) -> torch.Tensor:
    """Return cos + i sin of the angles of each pair: (n_tokens, 1, head_dim / 2) complex64.

    Args:
        rope: RoPE parameters of a class in `supported_models.ROPE_CLASSES`.
        freq_factors: the values of rope_freqs.weight, or None.
        head_dim: dimensions of a head, all of which are rotated.
        start, stop: the positions, from start to stop - 1.
    """
    angles = torch.from_numpy(_angles(rope, freq_factors, head_dim, start, stop)).double()
    magnitude = np.float32(rope.attn_factor)
    if isinstance(rope, YarnScaling):
        magnitude *= np.float32(yarn_attention(rope.factor))
    return torch.polar(torch.full_like(angles, float(magnitude)), angles).to(torch.complex64).unsqueeze(1)


def apply_rotary_emb(heads: torch.Tensor, freqs_cis: torch.Tensor, *, interleaved: bool) -> torch.Tensor:
    """Return the heads rotated to their positions.

    Args:
        heads: (n_tokens, n_head, head_dim) float32.
        freqs_cis: from `compute_freqs_cis`, for the same positions.
        interleaved: pairs are adjacent dimensions (GPT-J style); otherwise they are half a head apart
            (rotate_half, NeoX style).
    """
    if interleaved:
        pairs = torch.view_as_complex(heads.view(*heads.shape[:2], -1, 2))
        return torch.view_as_real(pairs * freqs_cis).flatten(-2)
    pairs = torch.complex(*heads.chunk(2, -1)) * freqs_cis
    return torch.cat((pairs.real, pairs.imag), -1)


def _angles(
    rope: RopeScaling, freq_factors: FreqFactors | None, head_dim: int, start: int, stop: int
) -> Angles:
    """Return the angle of each pair at each position: (n_tokens, head_dim / 2)."""
    step = np.float32(math.pow(rope.rope_theta, np.float32(-2.0 / head_dim)))
    extrapolated = np.empty((head_dim // 2, stop - start), np.float32)
    angle = np.arange(start, stop, dtype=np.float32)
    for pair in extrapolated:
        pair[:] = angle
        angle = angle * step
    extrapolated = extrapolated.T
    if freq_factors is not None:
        extrapolated = extrapolated / freq_factors
    if isinstance(rope, UnscaledRope):
        return extrapolated
    interpolated = np.float32(1.0 / np.float32(rope.factor)) * extrapolated
    if isinstance(rope, LinearScaling):
        return interpolated
    ramp = _yarn_ramp(rope, head_dim)
    mixed: Angles = interpolated * (np.float32(1) - ramp) + extrapolated * ramp
    return mixed


def _yarn_ramp(rope: RopeScaling, head_dim: int) -> Angles:
    """Return YaRN's mix of each pair: 1 is extrapolated (high frequencies), 0 is interpolated (low ones)."""
    low = max(0.0, math.floor(_yarn_corr_dim(BETA_FAST, rope, head_dim)))
    high = min(head_dim - 1.0, math.ceil(_yarn_corr_dim(BETA_SLOW, rope, head_dim)))
    slope = (np.arange(head_dim // 2) - low) / max(0.001, high - low)
    ramp: Angles = (1 - np.clip(slope, 0, 1)).astype(np.float32)
    return ramp


def _yarn_corr_dim(n_rotations: float, rope: RopeScaling, head_dim: int) -> float:
    """Return the (fractional) pair that does `n_rotations` full rotations within the original context."""
    return (
        head_dim
        * math.log(rope.original_context / (n_rotations * 2 * math.pi))
        / (2 * math.log(rope.rope_theta))
    )
