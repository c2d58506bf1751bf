"""The positions at which a sequence's tokens stand while they are trained on.

PoSE (Zhu et al. 2023, arXiv 2309.10400, Section 3): a sequence shorter than the window is cut in two
and the parts are moved apart, so that over many sequences every distance inside the window is seen.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def contiguous_positions(length: int) -> NDArray[np.int64]:
    """0, 1, ..., length - 1."""
    return np.arange(length, dtype=np.int64)


def pose_positions(length: int, window: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Ascending positions within [0, window): consecutive but for one jump at a random place.

    The jump is drawn evenly from the window, and cut to the longest that fits: so the distances near the
    window's end, which only the longest jumps reach, are seen as often as others. Where the first part
    begins is drawn from what is left.

    Args:
        length: tokens, at most `window`.
        window: the extended window, in tokens.
    """
    positions = contiguous_positions(length)
    if length < 2:
        return positions
    jump = min(int(random.integers(0, window)), window - length)
    start = int(random.integers(0, window - length - jump + 1))
    cut = int(random.integers(1, length))
    positions[cut:] += jump
    return positions + start
