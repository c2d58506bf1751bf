"""The common prefix of two token sequences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TokenIds = Sequence[int] | NDArray[np.int32]


def common_prefix_length(a: TokenIds, b: TokenIds) -> int:
    """Return how many tokens at the start of `a` and `b` are the same."""
    shorter = min(len(a), len(b))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        different = np.flatnonzero(a[:shorter] != b[:shorter])
        return int(different[0]) if len(different) else shorter
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), shorter)
