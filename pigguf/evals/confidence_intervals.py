"""95 % confidence intervals of shares and means, and McNemar's test of two models on the same items."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z_95 = 1.959963984540054  # standard errors on either side of the mean that hold 95 % of a normal distribution
_RESAMPLES = 1000


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return Wilson's score interval (Wilson 1927) of the share successes / trials, within 0 and 1."""
    share, weight = successes / trials, Z_95**2 / trials
    center = (share + weight / 2) / (1 + weight)
    margin = Z_95 * math.sqrt(share * (1 - share) / trials + weight / trials / 4) / (1 + weight)
    # at the ends the bounds are exactly 0 and 1, which rounding errors would miss
    return (0.0 if successes == 0 else center - margin), (1.0 if successes == trials else center + margin)


def bootstrap(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Return the interval of the mean by 1000 bootstrap resamples (Efron 1979), as rouge-score does."""
    resamples = np.random.default_rng(seed).choice(np.asarray(values), size=(_RESAMPLES, len(values)))
    low, high = np.percentile(resamples.mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def mcnemar(first_only: int, second_only: int) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    It is the probability that two equally good models differ on their items at least this unevenly.

    Args:
        first_only: the number of questions that only the first model answered right.
        second_only: the number of questions that only the second model answered right.
    """
    discordant = first_only + second_only
    fewer = min(first_only, second_only)
    tail = sum(math.comb(discordant, count) for count in range(fewer + 1))
    return min(1.0, float(2 * tail / 2**discordant))
