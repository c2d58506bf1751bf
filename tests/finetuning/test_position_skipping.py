"""Position ids: contiguous, and with PoSE over a long window."""

from __future__ import annotations

import numpy as np
import pytest

from pigguf.finetuning.position_skipping import contiguous_positions, pose_positions


def test_plain_positions_count_from_zero() -> None:
    assert contiguous_positions(4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(20))
def test_skipped_positions_ascend_inside_the_window_with_one_jump_at_most(seed: int) -> None:
    positions = pose_positions(64, 256, np.random.default_rng(seed))
    steps = np.diff(positions)
    assert positions[0] >= 0
    assert positions[-1] < 256
    assert (steps >= 1).all()
    assert (steps > 1).sum() <= 1


def test_every_distance_of_the_window_is_seen_alike() -> None:
    random = np.random.default_rng(0)
    jumps = [int(np.diff(pose_positions(64, 4096, random)).max()) - 1 for _ in range(4000)]
    quarters, _ = np.histogram(jumps, bins=4, range=(0, 4096 - 64))
    assert quarters.min() > 850  # of 1000 expected, 5.5 standard deviations
    longest = sum(jump == 4096 - 64 for jump in jumps)
    assert 35 < longest < 95  # of 63 expected, 3.6 standard deviations


def test_a_sequence_as_long_as_the_window_stays_where_it_is() -> None:
    positions = pose_positions(64, 64, np.random.default_rng(0))
    assert positions.tolist() == list(range(64))


def test_one_token_has_nowhere_to_jump() -> None:
    assert pose_positions(1, 8, np.random.default_rng(0)).tolist() == [0]
