"""Contexts: rejected options, caches of all types, sequences that do not disturb each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from support.tiny_gguf import text_tokens, write_tiny

from pigguf.common.parallel import usable_cores
from pigguf.errors import ContextOverflow, EngineError, UsageError
from pigguf.inference.engine import CacheType, Context, ContextOptions, Model, SamplingParams
from pigguf.inference.engine.context_options import default_threads

GREEDY = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with Model.open(write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf")) as model:
        yield model


@pytest.mark.parametrize(
    "wrong",
    [
        {"length": 0},
        {"threads": 0},
        {"prefill_threads": 1000},
        {"batch": 0},
        {"sequences": 0},
        {"sequences": 257},
        {"cache_k": "q3_0"},
        {"cache_v": "q8_0", "flash_attention": False},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as refusal:
        ContextOptions(**wrong)
    assert refusal.value.hint


def test_a_cache_type_that_does_not_fit_the_heads_is_refused(model: Model) -> None:
    with pytest.raises(UsageError, match="does not fit this model's heads of 16 dimensions"):
        Context(model, ContextOptions(length=64, cache_k="q8_0"))


def test_the_default_window_is_the_models(model: Model) -> None:
    with Context(model) as context:
        assert context.length == model.context_length == 1024


def test_an_odd_window_is_kept_exactly(model: Model) -> None:
    with Context(model, ContextOptions(length=37)) as context, context.sequence() as session:
        session.prefill(text_tokens(37))
        assert session.tokens_left == 0
        with pytest.raises(ContextOverflow):
            session.prefill([5])


@pytest.mark.parametrize("kind", get_args(CacheType))
def test_caches_of_every_type_give_nearly_the_same_logits(smollm2: Model, kind: CacheType) -> None:
    tokens = smollm2.tokenize("It is a truth universally acknowledged, that a single man in possession of")
    rows = []
    for cache in ("f32", kind):
        options = ContextOptions(length=64, cache_k=cache, cache_v=cache)  # type: ignore[arg-type]
        with Context(smollm2, options) as context, context.sequence() as session:
            [(_, row)] = session.evaluate(tokens, [len(tokens) - 1])
            rows.append(row)
    assert np.corrcoef(rows)[0, 1] > (0.9 if kind[:2] in ("q4", "q5", "iq") else 0.99)


def test_quantized_keys_alone_go_without_flash_attention(smollm2: Model) -> None:
    options = ContextOptions(length=64, cache_k="q8_0", flash_attention=False)
    with Context(smollm2, options) as context, context.sequence() as session:
        session.prefill(smollm2.tokenize("Hello"))
        assert len(list(session.generate(GREEDY, 3))) == 3


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path) -> Iterator[Model]:
    with Model.open(smollm2_gguf) as model:
        yield model


def test_the_cache_is_as_large_as_reported(smollm2: Model) -> None:
    from pigguf.inference.engine import log_to

    lines: list[str] = []
    log_to(lines.append)
    try:
        with Context(smollm2, ContextOptions(length=1000, sequences=2, cache_k="q8_0")) as context:
            expected = context.cache_bytes / 2**20
    finally:
        log_to(None)
    [logged] = [line for line in lines if "KV buffer size" in line]
    assert f"{expected:.2f} MiB" in logged


def test_sequences_do_not_disturb_each_other(model: Model) -> None:
    one, two = text_tokens(60, seed=2), text_tokens(70, seed=3)
    with Context(model, ContextOptions(length=128)) as context, context.sequence() as session:
        alone = []
        for tokens in (one, two):
            session.set_prompt(tokens)
            alone.append(list(session.generate(GREEDY, 20)))
    with Context(model, ContextOptions(length=128, sequences=2)) as context:
        first, second = context.sequence(), context.sequence()
        with pytest.raises(EngineError, match="all 2 sequences"):
            context.sequence()
        first.prefill(one)
        second.prefill(two)
        pairs = list(zip(first.generate(GREEDY, 20), second.generate(GREEDY, 20), strict=False))
        # Their tokens come in turns, each pairs from its own logits.
        assert [list(tokens) for tokens in zip(*pairs, strict=True)] == [
            tokens[: len(pairs)] for tokens in alone
        ]
        second.close()
        with context.sequence() as third:
            assert third.n_past == 0
            third.prefill(one)
            assert list(third.generate(GREEDY, 20)) == alone[0]
        assert first.tokens[: len(one)] == one


def test_default_threads_are_this_processs_cores() -> None:
    assert 1 <= default_threads() <= usable_cores()


def test_threads_do_not_change_the_text(model: Model) -> None:
    texts = []
    for threads in (1, 2):
        options = ContextOptions(length=64, threads=threads, prefill_threads=3 - threads)
        with Context(model, options) as context, context.sequence() as session:
            session.prefill(text_tokens(32))
            texts.append(list(session.generate(GREEDY, 16)))
    assert texts[0] == texts[1]
