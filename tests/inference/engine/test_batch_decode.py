"""One batch of many sessions: each computes what it does alone, and is unchanged by a failure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.tiny_gguf import text_tokens, write_tiny

from pigguf.errors import ContextOverflow, UsageError
from pigguf.inference.engine import Context, ContextOptions, Model, SamplingParams
from pigguf.inference.engine.batch_decode import BatchEntry, decode_batch

GREEDY = SamplingParams(temperature=0)
EXACT: Any = {"cache_k": "f32", "cache_v": "f32", "flash_attention": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with Model.open(write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf")) as model:
        yield model


@pytest.fixture
def context(model: Model) -> Iterator[Context]:
    options = ContextOptions(length=256, sequences=3, batch=64, **EXACT)
    with Context(model, options) as context:
        yield context


def alone(context: Context, tokens: list[int]) -> np.ndarray:
    with context.sequence() as session:
        [(_, logits)] = session.evaluate(tokens, [len(tokens) - 1])
    return logits


def test_a_mixed_batch_computes_what_each_computes_alone(context: Context) -> None:
    texts = [text_tokens(size, seed=size) for size in (40, 7, 1)]
    expected = [alone(context, tokens) for tokens in texts]
    sessions = [context.sequence() for _ in texts]
    decode_batch(
        context,
        [
            BatchEntry(sessions[0], texts[0][:20], wants_logits=False),
            BatchEntry(sessions[1], texts[1][:3], False),
        ],
    )
    indices = decode_batch(
        context,
        [
            BatchEntry(sessions[0], texts[0][20:]),
            BatchEntry(sessions[1], texts[1][3:]),
            BatchEntry(sessions[2], texts[2]),
        ],
    )
    assert indices == [19, 23, 24]
    for index, logits in zip(indices, expected, strict=True):
        assert np.allclose(context.logits(index), logits, atol=1e-4)
    assert [session.tokens for session in sessions] == texts
    # The same sessions go on alone, and as if they had always been.
    list(sessions[0].generate(GREEDY, 4))
    assert sessions[0].tokens[:40] == texts[0]


def test_what_does_not_fit_leaves_all_as_they_were(context: Context) -> None:
    one, two = context.sequence(), context.sequence()
    one.prefill(text_tokens(250))
    two.prefill(text_tokens(9))
    for wrong, error in (([5] * 7, ContextOverflow), ([10**6], UsageError)):
        with pytest.raises(error):
            decode_batch(context, [BatchEntry(two, [7]), BatchEntry(one, wrong)])
        assert (one.n_past, two.n_past) == (250, 9)
    decode_batch(context, [BatchEntry(two, [7]), BatchEntry(one, [5] * 6)])
    assert (one.tokens_left, two.n_past) == (0, 10)


def test_a_copied_beginning_is_as_good_as_a_computed_one(context: Context) -> None:
    prefix, more = text_tokens(60), text_tokens(20, seed=5)
    expected = alone(context, [*prefix[:50], *more])
    one, two = context.sequence(), context.sequence()
    one.prefill(prefix)
    two.prefill(text_tokens(5, seed=9))
    two.copy_prefix_from(one, 50)
    assert two.tokens == prefix[:50]
    [index] = decode_batch(context, [BatchEntry(two, more)])
    assert np.allclose(context.logits(index), expected, atol=1e-4)
    assert one.tokens == prefix
    with pytest.raises(UsageError, match="61 tokens cannot be copied of 60"):
        two.copy_prefix_from(one, 61)
