"""How likely a model finds tokens: log-softmax of logits, never more than one batch of them at a time.

    likelihoods = log_likelihoods(session, tokens, first=1)     of tokens[1:], each given all before it
    total = likelihoods.sum()

Contract: natural logarithms in float64. A row's exponentials are float32 of at most 1 (the row's largest
is subtracted first), its sum is float64, as in llama.cpp tools/perplexity/perplexity.cpp. What the cache
holds already of the tokens is not computed again, so that continuations of one prompt cost their own
tokens only. Left out: what is made of the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from pigguf.engine import Session
from pigguf.errors import EngineError, UsageError
from pigguf.parallel import usable_cores
from pigguf.progress import SILENT, Progress, Unit


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
    kept = min(_common_prefix(session.tokens, given), first - 1)
    session.keep(kept)
    wanted = range(first - 1 - kept, len(given) - kept)
    offset = kept + 1  # the logits after given[kept + i] speak of tokens[kept + i + 1]
    with ThreadPoolExecutor(usable_cores()) as threads:

        def score(indices: list[int], rows: list[NDArray[np.float32]]) -> list[float]:
            wanted_tokens = [tokens[i + offset] for i in indices]
            parts = _split(list(zip(rows, wanted_tokens, strict=True)), usable_cores())
            return [value for part in threads.map(_of_rows, parts) for value in part]

        batches = session.evaluate_batches(given[kept:], wanted, score, progress)
        scores = np.array([value for batch in batches for value in batch])
    if not np.isfinite(scores).all():
        raise not_numbers(session)
    return scores


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """One row of logits as natural logarithms of probabilities, of the same shape (vocab_size,)."""
    shifted: NDArray[np.float32] = logits - logits.max()
    return shifted - np.float32(np.log(np.exp(shifted).sum(dtype=np.float64)))


def not_numbers(session: Session) -> EngineError:
    """What to raise where logits are not numbers."""
    return EngineError(
        f"{session.context.model.path} computes logits that are not numbers",
        "the file is damaged: download or convert it again",
    )


class within:
    """A Progress for work that is a part of a stage: its own stages are not told, what they do is."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def begin(self, stage: str, total: float, unit: Unit) -> None:
        pass

    def advance(self, amount: float) -> None:
        self._progress.advance(amount)

    def end(self) -> None:
        pass


Scored = tuple[NDArray[np.float32], int]  # a row of logits, and the token to score by it


def _of_rows(rows: Sequence[Scored]) -> list[float]:
    """log_softmax(logits)[token] in float64, for each."""
    with np.errstate(invalid="ignore"):  # what is no number stays none, and is told of at the end
        return [_log_likelihood(logits, token) for logits, token in rows]


def _log_likelihood(logits: NDArray[np.float32], token: int) -> float:
    largest = logits.max()
    total = np.exp(logits - largest).sum(dtype=np.float64)
    return float(logits[token] - largest) - math.log(total)


def _split(rows: Sequence[Scored], parts: int) -> list[Sequence[Scored]]:
    """The rows in order, in at most so many parts of one size."""
    size = -(-len(rows) // parts)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
