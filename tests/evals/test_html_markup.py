"""Numbers as text, and escaped text."""

from __future__ import annotations

import math

import pytest

from pigguf.evals.html_markup import escape_text, format_cell, format_column


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "–"),
        (1234567, "1,234,567"),
        (31.8125, "31.812"),
        (0.000123456, "0.00012346"),
        (0.0000123456, "1.23e-05"),
        (1434.5, "1,434.5"),
        (100000.0, "100,000"),
        (3.2e9, "3.2e+09"),
        (0.0, "0"),
        (math.inf, "inf"),
        ("as shipped", "as shipped"),
    ],
)
def test_a_number_has_five_significant_digits(cell: str | float | None, text: str) -> None:
    assert format_cell(cell) == text


def test_numbers_of_one_column_have_the_same_number_of_decimals() -> None:
    assert format_column([31.5, 30.25, None, 4]) == ["31.50", "30.25", "–", "4"]
    assert format_column([1.0, 2.0]) == ["1", "2"]
    assert format_column([0.5, 1e-7]) == ["0.5", "1e-07"]
    assert format_column([]) == []
    assert format_column([137.92726, 1.72533, None]) == ["137.927", "1.725", "–"]
    assert format_column([0.0, 0.25]) == ["0.00", "0.25"]


def test_printable_text_is_kept() -> None:
    assert escape_text("naïve 日本 – 1 < 2\n") == "naïve 日本 – 1 &lt; 2\n"
