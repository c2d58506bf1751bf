"""Sliding window attention: which layers of an architecture use it where the file does not say.

Source: llama.cpp src/models/*.cpp (load_arch_hparams) and src/llama-hparams.cpp (set_swa_pattern), for the
architectures whose pattern has a default. Others require attention.sliding_window_pattern as an array, or
have no sliding layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WINDOW_KEY, PATTERN_KEY = "attention.sliding_window", "attention.sliding_window_pattern"


@dataclass(frozen=True)
class SlidingWindow:
    """The sliding window of an architecture.

    Attributes:
        period: one layer in `period` attends to all tokens, the others within the window.
        dense_first: the first layer of each period attends to all tokens; else the last does.
        default_window: the window where the file has no attention.sliding_window; None where the file then
            has no sliding layers, or cannot be loaded.
        min_layers: models with fewer layers have no default window.
    """

    period: int
    dense_first: bool = False
    default_window: int | None = None
    min_layers: int = 0


SLIDING_WINDOWS = {
    "afmoe": SlidingWindow(4),
    "cohere2": SlidingWindow(4),
    "cohere2moe": SlidingWindow(4, dense_first=True),
    "exaone-moe": SlidingWindow(4, default_window=128),
    "exaone4": SlidingWindow(4, default_window=4096, min_layers=64),
    "gemma-embedding": SlidingWindow(6),
    "gemma2": SlidingWindow(2, default_window=4096),
    "gemma3": SlidingWindow(6),
    "gemma3n": SlidingWindow(5),
    "gpt-oss": SlidingWindow(2),
    "laguna": SlidingWindow(4, dense_first=True),
    "llama4": SlidingWindow(4, default_window=8192),
    "mellum": SlidingWindow(4),
    "modern-bert": SlidingWindow(3, dense_first=True),
    "muse-glimmer": SlidingWindow(4),
    "olmo2": SlidingWindow(4),
    "plamo3": SlidingWindow(8),
    "smallthinker": SlidingWindow(4, dense_first=True, default_window=4096),
}

# Keys that sliding layers may have of their own, "<key>_swa"; pigguf runs files where both are equal.
SLIDING_LAYER_KEYS = ("attention.key_length", "attention.value_length", "rope.dimension_count")


def sliding_layers(period: int, n_layers: int, *, dense_first: bool = False) -> tuple[bool, ...]:
    """Return for each layer whether it attends within the window only (llama_hparams::set_swa_pattern).

    Args:
        period: the number of layers of which one attends to all tokens. 0 means that none does in llama.cpp;
            here it stands for a model without sliding layers, and gives False for all.
        n_layers: the number of layers.
        dense_first: the first layer of each period attends to all tokens, instead of the last.
    """
    dense = 0 if dense_first else period - 1
    return tuple(period > 0 and layer % period != dense for layer in range(n_layers))


def layers_that_slide(
    architecture: str, n_layers: int, pattern: int | Sequence[bool] | None
) -> tuple[bool, ...]:
    """Return for each layer of a file with sliding layers whether it attends within the window only.

    Args:
        architecture: a key of SLIDING_WINDOWS.
        n_layers: the number of layers.
        pattern: the value of attention.sliding_window_pattern: a flag for each layer, a period, or None.
    """
    default = SLIDING_WINDOWS[architecture]
    if pattern is None or isinstance(pattern, int):
        period = default.period if pattern is None else pattern
        if period == 0:
            return (True,) * n_layers
        return sliding_layers(period, n_layers, dense_first=default.dense_first)
    return tuple(bool(slides) for slides in pattern[:n_layers])
