"""Log-likelihoods of tokens, computed with the logits of at most one batch in memory.

    log_probs = log_likelihoods(session, tokens, first=1)     # of tokens[1:], each given all tokens before it
    total = log_probs.sum()

Natural logarithms in float64. As in llama.cpp's tools/perplexity/perplexity.cpp, the exponentials of a row
are float32 (with the row's maximum subtracted first), and their sum is float64. Tokens that the KV cache
already holds are not decoded again, so several continuations of one prompt cost only their own tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pigguf.common.parallel import usable_cores
from pigguf.common.softmax_and_kl import Logits, log_sum_exp
from pigguf.errors import UsageError
from pigguf.inference.engine import Session
from pigguf.progress import SILENT, Progress

T = TypeVar("T")


def log_likelihoods(
    session: Session, tokens: Sequence[int], first: int, progress: Progress = SILENT
) -> NDArray[np.float64]:
    """Return log p(tokens[i] | tokens[:i]) for each i from `first` on.

    Afterwards the session's KV cache holds all tokens except the last.

    Args:
        session: what decodes the tokens; a prefix that its cache shares with them is reused.
        tokens: the token ids.
        first: the index of the first token to score, at least 1.
        progress: receives one stage, "prefill", in tokens.

    Returns:
        Natural logarithms, shape (len(tokens) - first,), float64.

    Raises:
        UsageError: if there is no token before `first`, or none from it on.
        ContextOverflow: if the tokens do not fit into the context.
        EngineError: if llama.cpp fails, or the model computes logits that are NaN or infinite.
    """
    if not 1 <= first < len(tokens):
        raise UsageError(f"tokens from {first} on cannot be scored of {len(tokens)}")
    inputs = tokens[:-1]
    n_cached = min(session.common_prefix_length(inputs), first - 1)
    session.truncate(n_cached)
    wanted = range(first - 1 - n_cached, len(inputs) - n_cached)
    offset = n_cached + 1  # the logits at inputs[n_cached + i] predict tokens[n_cached + i + 1]
    with ThreadPoolExecutor(usable_cores()) as threads:

        def score(indices: list[int], rows: list[Logits]) -> list[float]:
            targets = (tokens[i + offset] for i in indices)
            return map_in_parallel(threads, _log_likelihood, zip(rows, targets, strict=True))

        batches = session.evaluate_batches(inputs[n_cached:], wanted, score, progress)
        scores = np.array([value for batch in batches for value in batch])
    if not np.isfinite(scores).all():
        raise session.nonfinite_logits_error()
    return scores


def map_in_parallel(
    threads: ThreadPoolExecutor, function: Callable[..., T], rows: Iterable[tuple[Any, ...]]
) -> list[T]:
    """Return function(*row) for each row, in order, computed by all cores.

    Each core gets one slice of the rows, because a task a row costs more than it computes. numpy's warnings
    of invalid values are off: the caller checks the results.
    """
    rows = list(rows)
    size = max(1, -(-len(rows) // usable_cores()))
    slices = [rows[start : start + size] for start in range(0, len(rows), size)]

    def map_slice(part: list[tuple[Any, ...]]) -> list[T]:
        with np.errstate(invalid="ignore"):
            return [function(*row) for row in part]

    return [value for values in threads.map(map_slice, slices) for value in values]


def _log_likelihood(logits: Logits, token: int) -> float:
    return float(logits[token]) - log_sum_exp(logits)
