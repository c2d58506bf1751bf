"""How likely a model finds tokens: log-softmax of logits, never more than one batch of them at a time.

    likelihoods = log_likelihoods(session, tokens, first=1)     of tokens[1:], each given all before it
    total = likelihoods.sum()

Contract: natural logarithms in float64. A row's exponentials are float32 of at most 1 (the row's largest
is subtracted first), its sum is float64, as in llama.cpp tools/perplexity/perplexity.cpp. What the cache
holds already of the tokens is not computed again, so that continuations of one prompt cost their own
tokens only. Left out: what is made of the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pigguf.common.numerics import log_sum_exp
from pigguf.common.parallel import usable_cores
from pigguf.errors import UsageError
from pigguf.inference.engine import Session
from pigguf.progress import SILENT, Progress, Unit

T = TypeVar("T")


def log_likelihoods(
    session: Session, tokens: Sequence[int], first: int, progress: Progress = SILENT
) -> NDArray[np.float64]:
    """log p(tokens[i] | tokens[:i]) for each i from `first` on; shape (len(tokens) - first,).

    Afterwards the session holds all tokens but the last, which nothing depends on. Progress is one
    stage, "prefill", in tokens.

    Raises:
        UsageError: nothing is before `first`, or nothing from it on.
        ContextOverflow: the tokens do not fit.
        EngineError: llama.cpp failed, or the model computes logits that are not numbers.
    """
    if not 1 <= first < len(tokens):
        raise UsageError(f"tokens from {first} on cannot be scored of {len(tokens)}")
    given = tokens[:-1]
    kept = min(session.common_prefix_length(given), first - 1)
    session.truncate(kept)
    wanted = range(first - 1 - kept, len(given) - kept)
    offset = kept + 1  # the logits after given[kept + i] speak of tokens[kept + i + 1]
    with ThreadPoolExecutor(usable_cores()) as threads:

        def score(indices: list[int], rows: list[NDArray[np.float32]]) -> list[float]:
            wanted_tokens = (tokens[i + offset] for i in indices)
            return map_in_parallel(threads, _log_likelihood, zip(rows, wanted_tokens, strict=True))

        batches = session.evaluate_batches(given[kept:], wanted, score, progress)
        scores = np.array([value for batch in batches for value in batch])
    if not np.isfinite(scores).all():
        raise session.nonfinite_logits_error()
    return scores


class NestedProgress:
    """A Progress for work that is a part of a stage: its own stages are not told, what they do is."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def begin(self, stage: str, total: float, unit: Unit) -> None:
        pass

    def advance(self, amount: float) -> None:
        self._progress.advance(amount)

    def end(self) -> None:
        pass


def map_in_parallel(
    threads: ThreadPoolExecutor, function: Callable[..., T], rows: Iterable[tuple[Any, ...]]
) -> list[T]:
    """function(*row) of every row, in their order: a part of the rows a core, for a task a row costs more
    than it computes. Numbers that are none are no warning here: whoever asked tells of them."""
    rows = list(rows)
    size = max(1, -(-len(rows) // usable_cores()))
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]

    def of_part(part: list[tuple[Any, ...]]) -> list[T]:
        with np.errstate(invalid="ignore"):
            return [function(*row) for row in part]

    return [value for values in threads.map(of_part, parts) for value in values]


def _log_likelihood(logits: NDArray[np.float32], token: int) -> float:
    return float(logits[token]) - log_sum_exp(logits)
