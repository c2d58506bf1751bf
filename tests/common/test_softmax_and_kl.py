"""log_softmax, log_sum_exp and common_prefix_length against plain implementations of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from pigguf.common.softmax_and_kl import log_softmax, log_sum_exp
from pigguf.common.token_prefix import common_prefix_length


def exact_log_softmax(row: np.ndarray) -> np.ndarray:
    shifted = row.astype(np.float64) - row.max()
    return shifted - np.log(np.exp(shifted).sum())


def logits() -> Sequence[np.ndarray]:
    rows = np.random.default_rng(0).standard_normal((3, 49152)).astype(np.float32) * [[1], [30], [1000]]
    return list(rows.astype(np.float32))


@pytest.mark.parametrize("row", logits())
def test_log_softmax_is_exact(row: np.ndarray) -> None:
    ours = log_softmax(row)
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, exact_log_softmax(row), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("row", logits())
def test_log_sum_exp_is_within_float32_of_the_exact_one(row: np.ndarray) -> None:
    expected = exact_log_softmax(row)
    np.testing.assert_allclose(row.astype(np.float64) - log_sum_exp(row), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("a", "b", "length"),
    [
        ([], [], 0),
        ([], [1], 0),
        ([1, 2, 3], [1, 2, 3], 3),
        ([1, 2, 3], [1, 2], 2),
        ([1, 2, 3], [1, 5, 3], 1),
        ([4], [1], 0),
    ],
)
def test_common_prefix_length_of_lists_and_arrays(a: list[int], b: list[int], length: int) -> None:
    assert common_prefix_length(a, b) == length
    assert common_prefix_length(np.array(b, np.int32), np.array(a, np.int32)) == length
    assert common_prefix_length(a, np.array(b, np.int32)) == length
