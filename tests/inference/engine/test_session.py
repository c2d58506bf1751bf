"""Sessions against a bare llama_decode loop: prefilled, truncated, continued, interrupted, evaluated."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
from support import reference_decode
from support.tiny_gguf import VOCABULARY, text_tokens, write_tiny

from pigguf.errors import ContextOverflow, EngineError, Interrupted, UsageError
from pigguf.inference.engine import Context, ContextOptions, Model, SamplingParams, Session
from pigguf.progress import SilentProgress

GREEDY = SamplingParams(temperature=0)
WINDOW = 512


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf")


@contextmanager
def session_of(
    path: Path, batch: int = 512, length: int = WINDOW, *, exact: bool = False
) -> Iterator[Session]:
    """At the defaults; `exact` computes attention in single precision."""
    options = ContextOptions(length=length, batch=batch)
    if exact:
        options = replace(options, cache_k="f32", cache_v="f32", flash_attention=False)
    with (
        Model.open(path) as model,
        Context(model, options) as context,
        context.sequence() as session,
    ):
        yield session


@pytest.fixture
def exact(tiny: Path) -> Iterator[Session]:
    with session_of(tiny, batch=64, exact=True) as session:
        yield session


@pytest.fixture
def session(tiny: Path) -> Iterator[Session]:
    with session_of(tiny, batch=64) as session:
        yield session


# ---- prefill and logits ------------------------------------------------------------------------------


def test_logits_are_those_of_a_bare_loop_at_exactly_the_positions_asked_for(
    tiny: Path, exact: Session
) -> None:
    tokens = text_tokens(150)
    expected = reference_decode.logits_after_each(tiny, tokens, WINDOW)
    wanted = [0, 63, 64, 65, 100, 149]
    found = dict(exact.evaluate(tokens, reversed(wanted)))
    assert list(found) == wanted
    assert exact.tokens == tokens
    for i, row in found.items():
        assert row.dtype == np.float32
        assert row.shape == (VOCABULARY,)
        np.testing.assert_allclose(row, expected[i], atol=1e-3 * expected.std(), err_msg=str(i))


def test_all_positions_at_once_are_the_same_whatever_the_memory_bound(exact: Session) -> None:
    tokens = text_tokens(150)
    at_once = np.stack([row for _, row in exact.evaluate(tokens, range(150))])
    exact.truncate(0)
    exact.context.max_outputs = 7
    few = np.stack([row for _, row in exact.evaluate(tokens, range(150))])
    np.testing.assert_allclose(few, at_once, atol=1e-3 * at_once.std())


def test_a_batch_with_more_logits_than_are_kept_is_cut_into_equal_parts(exact: Session) -> None:
    """64 tokens a batch; a rest of a few would cost as much as a batch."""
    tokens, counter = text_tokens(150), Counter()
    exact.context.max_outputs = 40
    wanted = [*range(64), *range(100, 150)]
    taken = exact.evaluate_batches(tokens, wanted, lambda indices, rows: (indices, len(rows)), counter)
    assert list(taken) == [
        (list(range(32)), 32),
        (list(range(32, 64)), 32),
        (list(range(100, 128)), 28),
        (list(range(128, 150)), 22),
    ]
    assert counter.amounts == [32, 32, 64, 22]
    assert exact.tokens == tokens


def test_a_batchs_logits_are_those_of_single_positions_where_they_lie(exact: Session) -> None:
    tokens = text_tokens(150)
    one_by_one = dict(exact.evaluate(tokens, range(150)))
    exact.truncate(0)
    firsts = exact.evaluate_batches(tokens, range(150), lambda indices, rows: (indices[0], rows[0].copy()))
    for i, row in firsts:
        np.testing.assert_array_equal(row, one_by_one[i])


def test_logits_go_on_after_what_the_cache_holds(exact: Session) -> None:
    tokens = text_tokens(100)
    [(_, whole)] = exact.evaluate(tokens, [99])
    exact.truncate(0)
    exact.prefill(tokens[:41])
    [(i, rest)] = exact.evaluate(tokens[41:], [58])
    assert i == 58
    np.testing.assert_allclose(rest, whole, atol=1e-3 * whole.std())


@pytest.mark.parametrize("batch", [1, 7, 64, 512])
def test_prefill_in_batches_equals_prefill_at_once(tiny: Path, batch: int) -> None:
    tokens = text_tokens(200)
    with reference_decode.bare_context(tiny, WINDOW, exact=True) as context:
        reference_decode.decode(context, tokens)
        expected = reference_decode.last_logits(context)
    with session_of(tiny, batch, exact=True) as session:
        session.prefill(tokens)
        assert session.n_past == 200
        assert session.tokens_left == WINDOW - 200
        np.testing.assert_allclose(session.context.logits(-1), expected, atol=1e-3 * expected.std())


def test_indices_outside_are_refused_at_once(session: Session) -> None:
    for wrong in ([-1], [3], [0, 7]):
        with pytest.raises(UsageError, match="of 3 tokens"):
            session.evaluate([1, 5, 6], wrong)
    assert list(session.evaluate([1, 5, 6], [])) == []
    assert session.n_past == 3


class Counter(SilentProgress):
    def __init__(self, at_advance: Callable[[], object] = lambda: None) -> None:
        self.total = 0.0
        self.amounts: list[float] = []
        self.ended = False
        self._at_advance = at_advance

    def begin(self, stage: str, total: float, unit: str) -> None:
        assert (stage, unit) == ("prefill", "tokens")
        self.total = total

    def advance(self, amount: float) -> None:
        self.amounts.append(amount)
        self._at_advance()

    def end(self) -> None:
        self.ended = True


def test_progress_counts_tokens(session: Session) -> None:
    counter = Counter()
    session.prefill(text_tokens(150), counter)
    assert (counter.total, counter.amounts, counter.ended) == (150, [64, 64, 22], True)


# ---- truncate, set_prompt, overflow-------------------------------------------------------------------


def test_a_truncated_session_is_as_if_the_rest_had_never_been(session: Session) -> None:
    tokens = text_tokens(100)
    session.prefill(tokens[:50])
    straight = list(session.generate(GREEDY, 10))
    session.set_prompt(tokens)
    session.truncate(50)
    assert session.tokens == tokens[:50]
    assert list(session.generate(GREEDY, 10)) == straight


def test_set_prompt_keeps_the_common_prefix_and_prefills_the_rest(session: Session) -> None:
    old = text_tokens(90)
    new = old[:40] + text_tokens(50, seed=9)[1:]
    counter = Counter()
    assert session.set_prompt(old) == 0
    assert session.set_prompt(new, counter) == 40
    assert sum(counter.amounts) == 49
    assert session.tokens == new
    continued = list(session.generate(GREEDY, 10))
    session.truncate(0)
    session.prefill(new)
    assert list(session.generate(GREEDY, 10)) == continued
    assert session.set_prompt(new) == len(new)


def test_what_does_not_fit_is_refused_before_anything_happens(session: Session) -> None:
    session.prefill(text_tokens(500))
    before = session.tokens
    with pytest.raises(
        ContextOverflow, match="13 tokens do not fit: the window is 512 tokens and 500 are there"
    ):
        session.prefill([5] * 13)
    with pytest.raises(ContextOverflow, match="513 tokens do not fit"):
        session.set_prompt([7] * 513)
    with pytest.raises(UsageError, match=f"no token {VOCABULARY}"):
        session.prefill([5, VOCABULARY])
    with pytest.raises(UsageError, match="501 tokens cannot be kept"):
        session.truncate(501)
    assert session.tokens == before
    session.prefill([5] * 12)
    assert session.tokens_left == 0


# ---- decode ------------------------------------------------------------------------------------------


def test_greedy_tokens_are_those_of_a_bare_loop(tiny: Path, session: Session) -> None:
    prompt = text_tokens(40)
    session.prefill(prompt)
    generated = list(session.generate(GREEDY, 60))
    assert generated == reference_decode.greedy(tiny, prompt, 60, WINDOW)[: len(generated)]
    assert session.tokens == prompt + generated[:-1]


def test_greedy_tokens_of_the_real_model_are_those_of_a_bare_loop(smollm2_gguf: Path) -> None:
    with session_of(smollm2_gguf) as session:
        prompt = session.context.model.tokenize("The capital of France is")
        session.prefill(prompt)
        generated = list(session.generate(GREEDY, 24))
        assert "Paris" in session.context.model.detokenize(generated)
    assert generated == reference_decode.greedy(smollm2_gguf, prompt, 24, WINDOW)[: len(generated)]


def test_generation_has_a_stop_reason(smollm2_gguf: Path) -> None:
    with session_of(smollm2_gguf, length=64) as session:
        model = session.context.model
        assert session.stop_reason is None
        question = "<|im_start|>user\nSay yes.<|im_end|>\n<|im_start|>assistant\n"
        session.prefill(model.tokenize(question, parse_special=True))
        answer = list(session.generate(GREEDY))
        assert session.stop_reason == "end"
        assert not any(map(model.is_eog, answer))
        session.set_prompt(model.tokenize("Once upon a time"))
        assert len(list(session.generate(GREEDY, 5))) == 5
        assert session.stop_reason == "length"
        assert list(session.generate(GREEDY, 0)) == []
        assert session.stop_reason == "length"
        some = session.generate(GREEDY)
        next(some)
        some.close()
        assert session.stop_reason == "interrupted"


def test_a_full_window_ends_the_text(session: Session) -> None:
    session.prefill(text_tokens(WINDOW - 3))
    generated = list(session.generate(GREEDY))
    assert session.stop_reason == "window"
    assert len(generated) == 4  # three that fit into the window, and the one sampled after them
    assert session.tokens_left == 0


def test_an_interrupted_text_goes_on_as_if_nothing_had_been(session: Session) -> None:
    session.prefill(text_tokens(40))
    straight = list(session.generate(GREEDY, 20))
    session.truncate(40)
    generated = []
    for token in session.generate(GREEDY, 20):
        generated.append(token)
        if len(generated) == 8:
            session.interrupt()
    assert session.stop_reason == "interrupted"
    assert generated == straight[:8]
    session.set_prompt(text_tokens(40) + generated)
    assert generated + list(session.generate(GREEDY, 12)) == straight


@pytest.mark.parametrize(
    "change", [lambda s: s.prefill([5]), lambda s: s.truncate(3), lambda s: s.generate(GREEDY)]
)
def test_an_iterator_whose_tokens_changed_raises(
    session: Session, change: Callable[[Session], object]
) -> None:
    session.prefill(text_tokens(40))
    generation = session.generate(GREEDY)
    next(generation)
    change(session)
    with pytest.raises(EngineError, match="put to another use"):
        next(generation)
    evaluating = session.evaluate(text_tokens(100), range(100))
    next(evaluating)
    change(session)
    with pytest.raises(EngineError, match="put to another use"):
        list(evaluating)


def test_sessions_of_one_context_take_turns_in_threads(tiny: Path) -> None:
    def text(session: Session, seed: int) -> list[int]:
        session.set_prompt(text_tokens(70 + seed))
        return list(session.generate(GREEDY, 60))

    options = ContextOptions(length=WINDOW, sequences=4)
    with Model.open(tiny) as model, Context(model, options) as context:
        sessions = [context.sequence() for _ in range(4)]
        alone = [text(session, seed) for seed, session in enumerate(sessions)]
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(text, sessions, range(4))) == alone


def test_an_empty_session_cannot_be_continued(session: Session) -> None:
    with pytest.raises(UsageError, match="nothing to continue"):
        session.generate(GREEDY)
    with pytest.raises(UsageError, match="max_tokens=-1` is negative"):
        session.generate(GREEDY, -1)


def test_a_model_with_nonfinite_logits_is_named(tmp_path: Path, tiny: Path) -> None:
    from pigguf.gguf_io import read_header

    tensor = read_header(tiny).tensors["output_norm.weight"]
    data = bytearray(tiny.read_bytes())
    data[tensor.offset : tensor.offset + tensor.nbytes] = np.full(tensor.elements, np.nan, "<f4").tobytes()
    path = tmp_path / "nan.gguf"
    path.write_bytes(data)
    with session_of(path) as session:
        session.prefill([1, 5, 6])
        with pytest.raises(EngineError, match="not numbers"):
            next(session.generate())


# ---- interruption ------------------------------------------------------------------------------------


def test_ctrl_c_between_batches_leaves_what_was_done(session: Session) -> None:
    tokens = text_tokens(300)
    with pytest.raises(KeyboardInterrupt):
        session.prefill(tokens, Counter(at_advance=lambda: signal.raise_signal(signal.SIGINT)))
    assert session.tokens == tokens[:64]
    session.prefill(tokens[64:])
    resumed = session.context.logits(-1).copy()
    session.truncate(0)
    session.prefill(tokens)
    np.testing.assert_allclose(session.context.logits(-1), resumed, atol=1e-3 * resumed.std())


@contextmanager
def alarm(seconds: float, action: Callable[[], object]) -> Iterator[None]:
    """Run `action` in the main thread's next Python code after so long: here, inside llama_decode."""

    def act(number: int, frame: FrameType | None) -> None:
        action()

    previous = signal.signal(signal.SIGALRM, act)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_ctrl_c_in_the_middle_of_a_batch_gives_it_up(smollm2_gguf: Path) -> None:
    with session_of(smollm2_gguf, batch=2048, length=2048) as session:
        tokens = session.context.model.tokenize("the house by the sea " * 400)[:2000]
        session.prefill(tokens[:20])
        counter = Counter()
        with alarm(0.05, lambda: signal.raise_signal(signal.SIGINT)), pytest.raises(KeyboardInterrupt):
            session.prefill(tokens[20:], counter)  # one batch of seconds
        assert counter.amounts == []
        assert counter.ended
        assert session.tokens == tokens[:20]
        session.prefill(tokens[20:60])
        after = list(session.generate(GREEDY, 5))
        session.truncate(0)
        session.prefill(tokens[:20])
        session.prefill(tokens[20:60])
        assert list(session.generate(GREEDY, 5)) == after


def test_interrupt_from_another_thread_stops_a_batch(smollm2_gguf: Path) -> None:
    with session_of(smollm2_gguf, batch=2048, length=2048) as session:
        tokens = session.context.model.tokenize("the house by the sea " * 400)[:2000]
        timer = threading.Timer(0.05, session.interrupt)
        timer.start()
        with pytest.raises(Interrupted, match="after 0 tokens"):
            session.prefill(tokens)
        timer.join()
        assert session.n_past == 0
        session.prefill(tokens[:10])  # the request was for the one that ran
        assert session.n_past == 10


def test_a_handler_that_does_not_raise_lets_the_work_go_on(session: Session) -> None:
    seen: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        session.prefill(text_tokens(300), Counter(at_advance=lambda: signal.raise_signal(signal.SIGINT)))
        with alarm(0.001, lambda: signal.raise_signal(signal.SIGINT)):
            session.set_prompt(text_tokens(300, seed=8))
    finally:
        signal.signal(signal.SIGINT, previous)
    assert len(seen) >= 5
    assert session.tokens == text_tokens(300, seed=8)


def test_ctrl_c_during_decode_leaves_tokens_as_the_cache(session: Session) -> None:
    session.prefill(text_tokens(40))
    generated = []
    with pytest.raises(KeyboardInterrupt):
        for token in session.generate(GREEDY, 20):
            generated.append(token)
            if len(generated) == 5:
                signal.raise_signal(signal.SIGINT)
    assert session.tokens == text_tokens(40) + generated[:4]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    session.prefill(generated[4:])
    assert session.n_past == 45
