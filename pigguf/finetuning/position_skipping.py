"""Position ids of training sequences: contiguous, or with PoSE (positional skip-wise training).

PoSE (Zhu et al. 2023, arXiv 2309.10400, Section 3) splits a sequence that is shorter than the context window
into two chunks and shifts the second one, so that over many sequences all relative distances in the window
occur.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def contiguous_positions(length: int) -> NDArray[np.int64]:
    """Return the position ids 0, 1, ..., length - 1: (length,), int64."""
    return np.arange(length, dtype=np.int64)


def pose_positions(length: int, window: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return ascending position ids in [0, window) that are consecutive except for one random skip.

    The length of the skip is uniform over the window, and clipped to the longest that fits. So distances
    close to the window's length, which only the longest skips reach, occur as often as others. The start of
    the first chunk is uniform over what is left of the window.

    Args:
        length: the length of the sequence, at most `window`.
        window: the extended context window, in tokens.
        rng: the random number generator.

    Returns:
        The position ids, (length,), int64.
    """
    positions = contiguous_positions(length)
    if length < 2:
        return positions
    skip = min(int(rng.integers(0, window)), window - length)
    start = int(rng.integers(0, window - length - skip + 1))
    split = int(rng.integers(1, length))  # index of the second chunk's first token
    positions[split:] += skip
    return positions + start
