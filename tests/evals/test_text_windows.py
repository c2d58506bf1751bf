"""Windows of texts: where they start, what is scored, how they are sampled, and default lengths."""

from __future__ import annotations

import pytest

from pigguf.evals.text_windows import TokenizedText, WindowSelection, default_windows


def text_of(tokens: int) -> TokenizedText:
    return TokenizedText("text", "", list(range(tokens)), None)


@pytest.mark.parametrize(
    ("selection", "tokens", "expected"),
    [
        (WindowSelection("half-window", None, None), 24, [(0, 5), (8, 5), (16, 5)]),
        (WindowSelection("half-window", None, None), 31, [(0, 5), (8, 5), (16, 5)]),
        (WindowSelection("half-window", None, None), 8, [(0, 5)]),
        (WindowSelection("whole", None, None), 17, [(0, 1), (8, 1)]),
        (WindowSelection("sliding", 3, None), 14, [(0, 1), (3, 5), (6, 5)]),
        (WindowSelection("sliding", 3, None), 13, [(0, 1), (3, 5)]),
        (WindowSelection("sliding", 1, None), 9, [(0, 1), (1, 7)]),
        (WindowSelection("sliding", 3, 9), 14, [(0, 5), (3, 5), (6, 5)]),
        (WindowSelection("whole", None, 3), 56, [(0, 1), (24, 1), (48, 1)]),
        (WindowSelection("whole", None, 2), 56, [(0, 1), (48, 1)]),
        (WindowSelection("whole", None, 1), 56, [(0, 1)]),
    ],
)
def test_windows_of_8_tokens_start_and_are_scored_by_the_method(
    selection: WindowSelection, tokens: int, expected: list[tuple[int, int]]
) -> None:
    assert [(w.start, w.first_scored) for w in selection.windows([text_of(tokens)], 8)] == expected


def test_windows_are_sampled_over_all_texts() -> None:
    windows = WindowSelection("whole", None, 3).windows([text_of(24), text_of(16)], 8)
    assert [(w.text_index, w.start) for w in windows] == [(0, 0), (0, 16), (1, 8)]


@pytest.mark.parametrize(
    ("context_length", "windows"),
    [
        (8192, [2048, 4096, 8192]),
        (5000, [2048, 4096, 5000]),
        (2048, [2048]),
        (512, [512]),
        (32768, [2048, 4096, 8192, 16384, 32768]),
    ],
)
def test_windows_double_up_to_the_models(context_length: int, windows: list[int]) -> None:
    assert default_windows(context_length) == windows
