"""How sure a figure is: 95 % intervals of shares and means, and a test of two models on the same items."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_Z = 1.959963984540054  # of the normal distribution's middle 95 %
_RESAMPLES = 1000


def wilson(right: int, total: int) -> tuple[float, float]:
    """Wilson's score interval of the share right / total (Wilson 1927), which stays within 0 and 1."""
    share, weight = right / total, _Z**2 / total
    middle = (share + weight / 2) / (1 + weight)
    reach = _Z * math.sqrt(share * (1 - share) / total + weight / total / 4) / (1 + weight)
    # at the ends it is 0 and 1 exactly, which rounding would miss
    return (0.0 if right == 0 else middle - reach), (1.0 if right == total else middle + reach)


def bootstrap(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The mean's interval by 1000 resamples (Efron 1979), as rouge-score's own aggregator has it; seeded."""
    drawn = np.random.default_rng(seed).choice(np.asarray(values), size=(_RESAMPLES, len(values)))
    low, high = np.percentile(drawn.mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def mcnemar(first_only: int, second_only: int) -> float:
    """p of McNemar's exact test: how often two equally good models part so far or further, two-sided.

    Args:
        first_only, second_only: questions that only the one, or only the other, answered right.
    """
    apart = first_only + second_only
    less = min(first_only, second_only)
    tail = sum(math.comb(apart, count) for count in range(less + 1))
    return min(1.0, float(2 * tail / 2**apart))
