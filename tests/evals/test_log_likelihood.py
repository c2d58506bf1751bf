"""Log-likelihoods: transformers' own, whatever the cache holds of the tokens already."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from support.compare import log_softmax as exact_log_softmax
from support.compare import transformers_logits
from support.tiny_checkpoints import VOCAB_SIZE

from pigguf.errors import ContextOverflow, EngineError, UsageError
from pigguf.evals.log_likelihood import log_likelihoods
from pigguf.gguf_io import read_header
from pigguf.inference.engine import Context, ContextOptions, Model, Session

TOKENS = [int(token) for token in np.random.default_rng(5).integers(3, VOCAB_SIZE, 120)]


@contextmanager
def session_of(path: Path, batch: int = 32) -> Iterator[Session]:
    options = ContextOptions(length=128, batch=batch, cache_k="f32", cache_v="f32", flash_attention=False)
    with Model.open(path) as model, Context(model, options) as context, context.sequence() as session:
        yield session


class AdvanceCounter:
    """A Progress that sums what it is advanced by."""

    def __init__(self) -> None:
        self.amount = 0.0

    def begin(self, stage: str, total: float, unit: str) -> None:
        pass

    def advance(self, amount: float) -> None:
        self.amount += amount

    def end(self) -> None:
        pass


def expected(checkpoint: Path, tokens: list[int], first: int) -> np.ndarray:
    rows = list(transformers_logits(checkpoint, tokens))
    return np.array([exact_log_softmax(rows[i - 1])[tokens[i]] for i in range(first, len(tokens))])


@pytest.mark.parametrize("first", [1, 2, 61, 119])
def test_each_token_is_scored_as_transformers_does(tiny, first: int) -> None:
    with session_of(tiny.gguf) as session:
        scores = log_likelihoods(session, TOKENS, first)
        assert session.tokens == TOKENS[:-1]
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected(tiny.checkpoint, TOKENS, first), rtol=1e-4, atol=1e-5)


def test_what_the_cache_holds_is_not_computed_again(tiny) -> None:
    """Two answers to one question cost the question once."""
    question, answers = TOKENS[:80], [TOKENS[80:90], TOKENS[90:97]]
    counter = AdvanceCounter()
    with session_of(tiny.gguf) as session:
        for answer in answers:
            scores = log_likelihoods(session, question + answer, len(question), counter)
            wanted = expected(tiny.checkpoint, question + answer, len(question))
            np.testing.assert_allclose(scores, wanted, rtol=1e-4, atol=1e-5)
    # of the second answer the question's last token is computed again, for its logits
    assert counter.amount == (80 + 10 - 1) + (1 + 7 - 1)


def test_scores_already_in_the_cache_are_scored_again_from_the_token_before(tiny) -> None:
    with session_of(tiny.gguf) as session:
        session.prefill(TOKENS)
        scores = log_likelihoods(session, TOKENS, 100)
        assert session.tokens == TOKENS[:-1]
    np.testing.assert_allclose(scores, expected(tiny.checkpoint, TOKENS, 100), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("first", [-1, 0, 120, 121])
def test_what_cannot_be_scored_is_refused(tiny, first: int) -> None:
    with session_of(tiny.gguf) as session, pytest.raises(UsageError, match="cannot be scored"):
        log_likelihoods(session, TOKENS, first)


def test_more_tokens_than_the_window_are_refused_before_anything_is_computed(tiny) -> None:
    with session_of(tiny.gguf) as session:
        with pytest.raises(ContextOverflow):
            log_likelihoods(session, TOKENS + TOKENS, 1)
        assert session.n_past == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_that_computes_no_numbers_is_named(tiny, value: float, tmp_path: Path) -> None:
    tensor = read_header(tiny.gguf).tensors["output_norm.weight"]
    data = bytearray(tiny.gguf.read_bytes())
    data[tensor.offset : tensor.offset + tensor.nbytes] = np.full(tensor.elements, value, "<f4").tobytes()
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with session_of(path) as session, pytest.raises(EngineError, match=r"bad\.gguf computes logits that"):
        log_likelihoods(session, TOKENS, 1)
