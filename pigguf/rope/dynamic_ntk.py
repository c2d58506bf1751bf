"""Dynamic NTK scaling, which has another rope_theta for every length of a text; a GGUF has one.

It is converted for one chosen context length, as unscaled positions with the rope_theta of that length.
Source: transformers' modeling_rope_utils.py.
"""

from __future__ import annotations

import math


def ntk_rope_theta(
    rope_theta: float, factor: float, original_context: int, context_length: int, rotary_dim: int
) -> float:
    """Return the rope_theta that dynamic NTK scaling has for a text of `context_length` tokens."""
    stretch = max(1.0, factor * context_length / original_context - (factor - 1.0))
    return rope_theta * math.pow(stretch, rotary_dim / (rotary_dim - 2))
