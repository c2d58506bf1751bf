"""Prompt lookup decoding: what is drafted, when it pays, and that the text is that of plain decoding."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from support.tiny_gguf import FIRST_BYTE, text_tokens, write_tiny

from pigguf.errors import EngineError
from pigguf.gguf_io import read_header
from pigguf.inference.engine import Context, ContextOptions, Model, SamplingParams, Session, generation
from pigguf.inference.engine.prompt_lookup import (
    DRAFT_LENGTHS,
    MAX_DRAFT_TOKENS,
    NGRAM_SIZE,
    DraftCostModel,
    PromptLookup,
)
from pigguf.llama_cpp_internals import kv_state_layout

GREEDY = SamplingParams(temperature=0)
WINDOW = 512
END = 2


class AlwaysDraft(DraftCostModel):
    """Drafts whenever there is a match, so that a test does not depend on the clock."""

    def __init__(self, length: int = MAX_DRAFT_TOKENS) -> None:
        super().__init__()
        self._always = length

    def best_draft_length(self, match_length: int, max_tokens: int) -> int:
        return min(self._always, max_tokens)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model that soon repeats itself and never ends.

    The last token determines most of the next, and those before it a little.
    """
    path = write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf")
    data = bytearray(path.read_bytes())
    for name, tensor in read_header(path).tensors.items():
        values = np.frombuffer(data, "<f4", tensor.elements, tensor.offset)
        if "attn_output" in name:
            values *= 0.01
        if name == "output.weight":
            values *= 20
            values.reshape(tensor.shape)[END] = 0
    path.write_bytes(data)
    return path


@pytest.fixture
def session(tiny: Path) -> Iterator[Session]:
    with session_of(tiny) as session:
        yield session


@contextmanager
def session_of(path: Path, length: int = WINDOW) -> Iterator[Session]:
    """Open a session that drafts whenever it can, in single precision."""
    options = ContextOptions(length=length, cache_k="f32", cache_v="f32", flash_attention=False)
    with Model.open(path) as model, Context(model, options) as context, context.sequence() as session:
        session.draft_costs = AlwaysDraft()
        yield session


def prompt_of(seed: int) -> list[int]:
    """Return a passage twice and its beginning, so that there is a draft at once."""
    passage = text_tokens(40, seed)[1:]
    return [1, *passage, *passage, *passage[:5]]


def generate(
    session: Session, prompt: list[int], sampling: SamplingParams, limit: int, lookup: bool
) -> list[int]:
    session.truncate(0)
    session.prefill(prompt)
    return list(session.generate(sampling, limit, prompt_lookup=lookup))


def cached_tokens(session: Session) -> int:
    return session.context.n_past(session.seq_id)


# ---- what is drafted ---------------------------------------------------------------------------------


def test_a_draft_is_what_came_after_these_tokens_when_they_last_stood_there() -> None:
    random = np.random.default_rng(3)
    hits = 0
    for _ in range(300):
        tokens = [int(token) for token in random.integers(1, 5, random.integers(1, 60))]
        found = PromptLookup(tokens, AlwaysDraft()).draft(4)
        n = NGRAM_SIZE
        ends = [end for end in range(n, len(tokens)) if tokens[end - n : end] == tokens[-n:]]
        after = tokens[ends[-1] :] if ends and len(tokens) > NGRAM_SIZE else []
        assert found == (after * 4)[:4]
        hits += bool(found)
    assert hits > 100


def test_a_repetition_is_followed_while_it_is_right_and_left_where_it_is_not() -> None:
    lookup = PromptLookup([1, 2, 3, 10, 11, 12, 13, 9, 1, 2, 3], AlwaysDraft())
    assert lookup.draft(3) == [10, 11, 12]
    lookup.extend([10, 11])
    assert lookup.draft(2) == [12, 13]
    lookup.extend([50])
    assert lookup.draft(5) == []
    lookup.extend([11, 12, 13])  # only here do three tokens stand as before
    assert lookup.draft(2) == [9, 1]


def test_a_repetition_that_reaches_the_end_goes_round() -> None:
    assert PromptLookup([7, 8, 7, 8, 7], AlwaysDraft()).draft(5) == [8, 7, 8, 7, 8]
    assert PromptLookup([4, 4, 4, 4], AlwaysDraft()).draft(3) == [4, 4, 4]


# ---- when it pays ------------------------------------------------------------------------------------


def measured_costs(cost: float, acceptance: float, length: int = 16) -> DraftCostModel:
    """Return a cost model of 10 ms steps, batches at this cost, and this share of accepted tokens."""
    costs = DraftCostModel()
    for _ in range(100):
        costs.record_step(1, 0.010)
    for i in range(1000):
        costs.record_step(8, 0.010 * (1 + 7 * cost))
        costs.record_match(length, int(i * acceptance) != int((i + 1) * acceptance))
    return costs


def test_drafts_are_long_where_they_are_right_and_cheap_and_none_where_they_do_not_pay() -> None:
    assert DraftCostModel().best_draft_length(16, 31) == 0  # nothing was measured yet
    assert measured_costs(0.05, 1.0).best_draft_length(16, 31) == MAX_DRAFT_TOKENS
    assert measured_costs(0.05, 1.0).best_draft_length(16, 6) == 6
    assert 0 < measured_costs(0.3, 0.8).best_draft_length(16, 31) < 8
    assert measured_costs(0.5, 0.4).best_draft_length(16, 31) == 0
    assert measured_costs(1.1, 1.0).best_draft_length(16, 31) == 0
    best = {measured_costs(0.2, share / 10).best_draft_length(16, 31) or 1 for share in range(11)}
    assert set(DRAFT_LENGTHS) >= best


def test_short_and_long_repetitions_are_trusted_apart() -> None:
    costs = measured_costs(0.3, 1.0, length=16)
    for _ in range(50):
        costs.record_match(NGRAM_SIZE, False)
    assert costs.best_draft_length(NGRAM_SIZE, 31) == 0
    assert costs.best_draft_length(16, 31) > 0


def test_batches_that_cost_too_much_are_tried_again_after_a_while() -> None:
    costs = measured_costs(1.5, 1.0)
    tried = next(i for i in range(10_000) if costs.best_draft_length(16, 31))
    assert 100 < tried < 2000


def test_one_slow_step_does_not_end_lookups() -> None:
    costs = measured_costs(0.2, 1.0)
    costs.record_step(8, 60.0)
    assert costs.best_draft_length(16, 31) > 0


# ---- what is generated -------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 4, MAX_DRAFT_TOKENS])
@pytest.mark.parametrize("seed", range(4))
def test_greedy_text_is_that_of_plain_decoding(session: Session, seed: int, length: int) -> None:
    session.draft_costs = AlwaysDraft(length)
    prompt = prompt_of(seed)
    plain = generate(session, prompt, GREEDY, 300, lookup=False)
    assert session.n_drafted == 0
    assert generate(session, prompt, GREEDY, 300, lookup=True) == plain
    assert session.n_accepted > 0
    assert session.n_drafted > session.n_accepted


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=0.3, seed=1),
        SamplingParams(temperature=0.8, seed=2, repeat_penalty=1.1),
        SamplingParams(temperature=0, repeat_penalty=1.3, repeat_last_n=20),
        SamplingParams(temperature=0, frequency_penalty=0.5),
        SamplingParams(temperature=0, grammar='root ::= ("abcabc" | "xyz" | "\\n")+'),
        SamplingParams(temperature=0.8, seed=3, grammar="root ::= [a-d]+"),
    ],
    ids=str,
)
def test_the_sampler_sees_each_generated_token_once_and_no_rejected_one(
    session: Session, sampling: SamplingParams
) -> None:
    prompt = prompt_of(5)
    plain = generate(session, prompt, sampling, 200, lookup=False)
    assert generate(session, prompt, sampling, 200, lookup=True) == plain
    assert session.n_drafted > 0


def test_what_is_not_clear_is_computed_as_plain_decoding_does(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = prompt_of(1)
    plain = generate(session, prompt, GREEDY, 100, lookup=False)
    monkeypatch.setattr(generation, "_MIN_LOGIT_MARGIN", math.inf)
    assert generate(session, prompt, GREEDY, 100, lookup=True) == plain
    assert session.n_drafted > 0
    assert session.n_accepted == 0


def test_an_end_inside_a_draft_ends_the_text(session: Session) -> None:
    letters = [FIRST_BYTE + ord(letter) for letter in "abcdefgh"]
    prompt = [1, *letters, END, *letters, END]
    for lookup in (False, True):
        sampling = SamplingParams(temperature=0, grammar='root ::= "abcdefgh"')
        assert generate(session, prompt, sampling, 100, lookup) == letters
        assert session.stop_reason == "end"
        assert session.tokens == prompt + letters
        assert cached_tokens(session) == session.n_past
    assert session.n_accepted >= 4


# ---- the session's contract --------------------------------------------------------------------------


def test_tokens_are_those_asked_for_at_every_moment(session: Session) -> None:
    prompt = prompt_of(2)
    session.prefill(prompt)
    seen: list[int] = []
    was_ahead = False
    for token in session.generate(GREEDY, 120):
        assert session.tokens == prompt + seen
        assert session.tokens_left == WINDOW - len(prompt) - len(seen)
        was_ahead |= cached_tokens(session) > session.n_past
        seen.append(token)
    assert was_ahead
    assert cached_tokens(session) == session.n_past == len(prompt) + 119


@pytest.mark.parametrize("count", [*range(1, 12), 40])
@pytest.mark.parametrize(
    "leave",
    [
        lambda session, generation_iterator: generation_iterator.close(),
        lambda session, generation_iterator: session.interrupt() or list(generation_iterator),
        lambda session, generation_iterator: session.prefill([]),
        lambda session, generation_iterator: session.truncate(session.n_past),
        lambda session, generation_iterator: session.generate(GREEDY),
        lambda session, generation_iterator: session.export_state(),
    ],
    ids=["close", "interrupt", "prefill", "truncate", "generate", "export"],
)
def test_a_text_left_in_the_middle_leaves_what_was_asked_for(
    session: Session, count: int, leave: Callable[[Session, Iterator[int]], object]
) -> None:
    prompt = prompt_of(0)
    plain = generate(session, prompt, GREEDY, 60, lookup=False)
    session.truncate(0)
    session.prefill(prompt)
    generation_iterator = session.generate(GREEDY)
    some = [next(generation_iterator) for _ in range(count)]
    leave(session, generation_iterator)
    assert session.tokens == prompt + some[:-1]
    assert cached_tokens(session) == session.n_past
    session.set_prompt(prompt + some)
    assert some + list(session.generate(GREEDY, 60 - count)) == plain


def test_a_text_goes_on_after_its_state_was_taken(session: Session) -> None:
    prompt = prompt_of(0)
    plain = generate(session, prompt, GREEDY, 60, lookup=False)
    session.truncate(0)
    session.prefill(prompt)
    some = []
    for token in session.generate(GREEDY, 60):
        some.append(token)
        if len(some) % 7 == 0:
            assert kv_state_layout.read_layout(session.export_state()).cells == session.n_past
    assert some == plain


def test_an_iterator_whose_tokens_changed_says_so_among_accepted_tokens(session: Session) -> None:
    session.prefill(prompt_of(0))
    generation_iterator = session.generate(GREEDY)
    while cached_tokens(session) == session.n_past:
        next(generation_iterator)
    session.prefill([FIRST_BYTE])
    with pytest.raises(EngineError, match="put to another use"):
        next(generation_iterator)
    assert cached_tokens(session) == session.n_past


def test_the_limit_and_the_window_end_a_text_where_they_end_plain_decoding(session: Session) -> None:
    prompt = prompt_of(3)
    for limit in range(12):
        plain = generate(session, prompt, GREEDY, limit, lookup=False)
        before = session.tokens, session.stop_reason
        assert generate(session, prompt, GREEDY, limit, lookup=True) == plain
        assert (session.tokens, session.stop_reason) == before
    plain = generate(session, prompt, GREEDY, WINDOW, lookup=False)
    assert generate(session, prompt, GREEDY, WINDOW, lookup=True) == plain
    assert session.stop_reason == "window"
    assert session.tokens_left == 0
    assert len(plain) == WINDOW - len(prompt) + 1


def test_ctrl_c_at_any_moment_leaves_tokens_as_the_cache(session: Session) -> None:
    prompt = prompt_of(0)
    plain = generate(session, prompt, GREEDY, 200, lookup=False)
    previous = signal.signal(signal.SIGALRM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    stopped = 0
    try:
        for i in range(150):
            session.truncate(0)
            session.prefill(prompt)
            some: list[int] = []
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.0005 + i * 0.0003)
                    for token in session.generate(GREEDY, 200):
                        some.append(token)
                finally:  # where it may come as well
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                stopped += 1
            assert cached_tokens(session) == session.n_past
            assert session.tokens[: len(prompt)] == prompt
            generated = session.tokens[len(prompt) :]
            assert generated == plain[: len(generated)]
            assert len(some) - 2 <= len(generated) <= len(some)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert stopped > 20


# ---- the real model ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_passage_is_copied_as_plain_decoding_copies_it(smollm2_gguf: Path, novel: str) -> None:
    """Compare texts that may differ where plain decoding had two tokens of about the same logit.

    Batches round differently than single steps, in quantized products by up to 1.2 logits (docs/LOG.md).
    """
    options = ContextOptions(length=2048)
    compared = 0
    with (
        Model.open(smollm2_gguf) as model,
        Context(model, options) as context,
        context.sequence() as session,
    ):
        for start in range(0, 30_000, 5_000):
            passage = model.tokenize(novel[start : start + 2500])[:400]
            prompt = [*passage, *model.tokenize("\n\n---\n\n")] * 2 + passage[:40]
            session.truncate(0)
            session.prefill(prompt)
            plain, leads = [], []
            for token in session.generate(GREEDY, 300, prompt_lookup=False):
                plain.append(token)
                second, first = np.partition(context.logits(-1), -2)[-2:]
                leads.append(first - second)
            before = session.n_accepted
            copied = generate(session, prompt, GREEDY, 300, lookup=True)
            assert session.n_accepted - before > len(copied) / 2
            pairs = enumerate(zip(plain, copied, strict=False))
            same = next((i for i, (one, other) in pairs if one != other), None)
            if same is not None:
                assert leads[same] < 1.5
            compared += len(plain) if same is None else same
    assert compared > 600
