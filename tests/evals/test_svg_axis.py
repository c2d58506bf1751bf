"""Axes of plots: ticks, their labels, and the range of values."""

from __future__ import annotations

import pytest

from pigguf.evals.svg_axis import fit_axis, format_token_count


def test_ticks_of_windows_are_powers_of_two_and_of_other_values_round() -> None:
    windows = fit_axis([2048, 4096, 8192, 16384, 32768], 0, 100, log=True, padding=0.03, max_ticks=8)
    assert windows.labels() == ["2k", "4k", "8k", "16k", "32k"]
    assert windows.to_pixel(8192) == pytest.approx(50)
    positions = fit_axis([512, 16384, 32256], 0, 100, log=False, padding=0.0, max_ticks=8)
    assert positions.labels() == ["4k", "8k", "12k", "16k", "20k", "24k", "28k"]
    assert fit_axis([0.002, 0.0149], 0, 1, log=False, padding=0, max_ticks=4).labels() == ["0.005", "0.010"]
    assert fit_axis([7.2, 1400], 0, 1, log=True, padding=0, max_ticks=8).labels() == [
        *("10", "20", "50", "100", "200", "500", "1,000")
    ]
    assert fit_axis([28.1, 31.8], 0, 1, log=True, padding=0, max_ticks=5).labels() == ["29", "30", "31"]
    assert fit_axis([64, 128, 512], 0, 1, log=True, padding=0.03, max_ticks=8).labels() == [
        "64",
        "128",
        "256",
        "512",
    ]
    assert [format_token_count(1000), format_token_count(1536), format_token_count(131072)] == [
        "1,000",
        "1,536",
        "128k",
    ]


@pytest.mark.parametrize("values", [[5.0], [0.0], [3.0, 3.0], [1e-9, 1e9], [-2.0, 2.0], [1024.0]])
def test_an_axis_contains_its_values(values: list[float]) -> None:
    for log in {False, min(values) > 0}:
        fitted = fit_axis(values, 0, 100, log=log, padding=0.05, max_ticks=6)
        assert all(0 <= fitted.to_pixel(value) <= 100 for value in values)
        assert fitted.ticks
        assert all(0 <= fitted.to_pixel(tick) <= 100 for tick in fitted.ticks)
        assert len(set(fitted.labels())) == len(fitted.ticks) <= 8
