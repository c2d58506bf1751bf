"""The verdict of a sweep on perplexities by hand: in words, and as options for convert."""

from __future__ import annotations

import math
from dataclasses import replace

from pigguf.evals.perplexity import PerplexityResult
from pigguf.evals.sweep_verdict import SweepVerdict, convert_options, describe_verdict, judge_factors
from pigguf.rope import LinearScaling, RopeScaling, UnscaledRope


def grid(values: dict[float, list[float]], spread: float = 0.02) -> dict[tuple[float, int], PerplexityResult]:
    """Perplexities at 2048, 4096 and so on, with intervals of +/- `spread` of each."""
    return {
        (factor, 2048 << i): PerplexityResult(
            *(f"factor {factor:g}", 2048 << i, value, value * (1 - spread), value * (1 + spread)),
            *(-math.log(value), 0.01, 1, 1000, 2047),
        )
        for factor, row in values.items()
        for i, value in enumerate(row)
    }


PLAIN = UnscaledRope(rope_theta=10000.0, original_context=4096, context_length=4096)


BASE = {1.0: [31.5, 30.0, 29.6, 58.1], 2.0: [45.0, 44.0, 43.0, 44.0], 4.0: [159.5, 160.0, 162.0, 165.0]}


def verdict_in_words(
    values: dict[float, list[float]], own: RopeScaling = PLAIN, spread: float = 0.02
) -> tuple[SweepVerdict, str]:
    verdict = judge_factors(grid(values, spread))
    return verdict, describe_verdict(verdict, grid(values, spread), own)


def test_an_untuned_base_has_factor_one_though_a_larger_one_is_less_bad_beyond_its_window() -> None:
    verdict, words = verdict_in_words(BASE)
    assert (verdict.factor, verdict.clear, verdict.reach, verdict.breaks_at) == (1.0, True, 8192, 16384)
    assert [fit.factor for fit in verdict.fits] == [1.0, 1.0, 1.0, 2.0]
    assert (
        "No one factor fits best at every window: factor 1 at 2,048, 4,096 and 8,192; factor 2 at 16,384."
        in words
    )
    assert "that is factor 1, clearly so" in words
    assert "holds up to 8,192 tokens (29.6) and rises at 16,384 (58.1)" in words
    assert words.endswith("That is the factor the file states.")
    assert convert_options(verdict, PLAIN) == "--rope-factor 1 --context 8192"


def test_a_file_that_states_another_factor_is_to_be_converted_again() -> None:
    _, words = verdict_in_words(
        BASE, LinearScaling(rope_theta=10000.0, original_context=4096, context_length=16384, factor=4.0)
    )
    assert words.endswith(
        "The file states linear, factor 4: convert the checkpoint again with --rope-factor 1 --context 8192."
    )


def test_the_original_window_is_the_one_that_held_divided_by_the_factor() -> None:
    tuned = {1.0: [60.0, 70.0, 90.0], 4.0: [7.2, 7.0, 6.9], 8.0: [8.2, 8.1, 8.0]}
    verdict, words = verdict_in_words(tuned)
    assert convert_options(verdict, PLAIN) == "--rope-factor 4 --original-context 2048 --context 8192"
    assert "may be too short" in words
    # the file states a longer window than was measured, and none of those broke
    assert convert_options(verdict, replace(PLAIN, context_length=16384)).endswith(
        "--original-context 4096 --context 16384"
    )
    broken, words = verdict_in_words({factor: [*row, 300.0] for factor, row in tuned.items()})
    assert (broken.reach, broken.breaks_at) == (8192, 16384)
    assert convert_options(broken, PLAIN) == convert_options(verdict, PLAIN)
    assert "may be too short" not in words


def test_overlapping_intervals_are_reported_with_their_window() -> None:
    near = {1.0: [30.0, 60.0], 2.0: [20.0, 20.0], 4.0: [20.5, 30.0]}
    verdict, words = verdict_in_words(near)
    assert (verdict.factor, verdict.clear, [fit.clear for fit in verdict.fits]) == (2.0, False, [False, True])
    assert (
        "not clearly everywhere: at 2,048 tokens the intervals of factor 2 (20) and factor 4 (20.5) overlap"
        in words
    )
    assert "relying" in words
    verdict, words = verdict_in_words(near, spread=0.001)
    assert verdict.clear
    assert "Factor 2 fits best, clearly, at 2,048 and 4,096: at 2,048 tokens its perplexity is 20" in words
    assert "that of factor 4 20.5 (2.5% higher)" in words
    assert "that of factor 2 60 (3 times as high)" in verdict_in_words({1.0: [20.0], 2.0: [60.0]})[1]


def test_a_rise_within_the_intervals_or_a_tenth_is_not_one() -> None:
    for row, reach in (([20.0, 21.9], 4096), ([20.0, 22.1], 2048), ([20.0, 19.0, 21.5], 4096)):
        assert verdict_in_words({1.0: row, 2.0: [99.0] * len(row)})[0].reach == reach
    assert verdict_in_words({1.0: [20.0, 23.0], 2.0: [99.0] * 2}, spread=0.1)[0].reach == 4096
