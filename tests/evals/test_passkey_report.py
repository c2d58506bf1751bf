"""k_max by hand."""

from __future__ import annotations

import pytest

from pigguf.evals.passkey_report import k_max


@pytest.mark.parametrize(
    ("shares", "reached"),
    [
        ({256: 1.0, 512: 0.2, 768: 0.1, 1024: 1.0}, 512),
        ({256: 0.19, 512: 1.0}, 0),
        ({512: 0.3, 256: 0.9}, 512),
        ({}, 0),
    ],
)
def test_k_max_is_the_last_distance_before_the_first_that_fails(
    shares: dict[int, float], reached: int
) -> None:
    assert k_max(shares) == reached
