"""Confidence intervals and McNemar's test, by hand."""

from __future__ import annotations

import math

import pytest

from pigguf.evals.confidence_intervals import bootstrap, mcnemar, wilson


def test_wilsons_interval_by_hand() -> None:
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=1e-4)
    low, high = wilson(20, 20)
    assert (low, high) == (pytest.approx(1 - 0.1611, abs=1e-4), 1.0)


def test_mcnemars_p_by_hand() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(3, 3) == 1.0
    assert mcnemar(0, 5) == 2 / 32
    assert mcnemar(1, 7) == mcnemar(7, 1) == 2 * (1 + 8) / 256


def test_bootstrap_of_what_is_known() -> None:
    assert bootstrap([4.0] * 5) == (4.0, 4.0)
    assert bootstrap([1.0, 3.0]) == (1.0, 3.0)  # a quarter of the resamples are each
    low, high = bootstrap(list(range(101)))
    error = 1.96 * math.sqrt((101**2 - 1) / 12 / 101)  # a standard error of the mean of 0 to 100
    assert (low, high) == (pytest.approx(50 - error, abs=0.6), pytest.approx(50 + error, abs=0.6))
