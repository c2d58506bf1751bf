"""The scheduler: the tokens of each alone, answers that flow, what is shared, who leaves, who is refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from support.running_server import wait_until
from support.tiny_chat import TEMPLATE, write_next_token_model
from support.tiny_gguf import text_tokens, write_tiny

from pigguf.gguf_io.metadata import u32
from pigguf.grammar import json_schema_to_grammar
from pigguf.inference.engine import Context, ContextOptions, Model, SamplingParams, Session
from pigguf.inference.engine.batch_decode import BatchEntry, decode_batch
from pigguf.serve.errors import RequestRefused
from pigguf.serve.events import (
    Finished,
    PrefillProgress,
    QueuePosition,
    RequestEvent,
    RequestFailed,
    TextChunk,
)
from pigguf.serve.generation_request import GenerationRequest
from pigguf.serve.scheduler import Scheduler

GREEDY = SamplingParams(temperature=0)
WINDOW = 4096


class Heard:
    """What comes of requests, with the time at which it came."""

    def __init__(self) -> None:
        self.events: list[tuple[float, int, RequestEvent]] = []
        self._changed = threading.Condition()

    def __call__(self, index: int, event: RequestEvent) -> None:
        with self._changed:
            self.events.append((time.monotonic(), index, event))
            self._changed.notify_all()

    def of(self, index: int) -> list[RequestEvent]:
        return [event for _, at, event in self.events if at == index]

    def end(self, index: int = 0) -> Finished | RequestFailed:
        self.until(lambda: any(isinstance(event, Finished | RequestFailed) for event in self.of(index)))
        last = self.of(index)[-1]
        assert isinstance(last, Finished | RequestFailed)
        return last

    def tokens(self, index: int = 0) -> list[int]:
        end = self.end(index)
        assert isinstance(end, Finished), end
        return [one.token for event in self.of(index) if isinstance(event, TextChunk) for one in event.tokens]

    def until(self, come: object) -> None:
        with self._changed:
            assert self._changed.wait_for(come, timeout=60), self.events  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", {"llama.context_length": u32(WINDOW)})
    with Model.open(path) as model:
        yield model


@pytest.fixture
def scheduler(model: Model, request: pytest.FixtureRequest) -> Iterator[Scheduler]:
    slots, queue = getattr(request, "param", (2, 64))
    options = ContextOptions(length=WINDOW, sequences=slots, batch=128, cache_k="f32", cache_v="f32")
    with Context(model, options) as context, Scheduler(context, queue) as scheduler:
        yield scheduler


def asked(prompt: Sequence[int], most: int = 24, client: str = "") -> GenerationRequest:
    return GenerationRequest(prompt, GREEDY, most, logprobs=0, client=client)


def drawn(scheduler: Scheduler, *prompts: Sequence[int], most: int = 24) -> list[list[int]]:
    heard = Heard()
    scheduler.submit([asked(prompt, most) for prompt in prompts], heard)
    return [heard.tokens(index) for index in range(len(prompts))]


def test_answers_are_those_of_a_session_alone(model: Model, scheduler: Scheduler) -> None:
    prompts = [text_tokens(size, seed=size) for size in (300, 9, 130, 41)]
    options = ContextOptions(length=WINDOW, cache_k="f32", cache_v="f32", batch=128)
    with Context(model, options) as context, context.sequence() as session:
        expected = []
        for prompt in prompts:
            session.set_prompt(prompt)
            expected.append(list(session.generate(GREEDY, 24, prompt_lookup=False)))
    assert drawn(scheduler, *prompts) == expected
    for prompt, tokens in zip(prompts, expected, strict=True):
        assert drawn(scheduler, prompt) == [tokens]


def test_answers_flow_while_a_long_prompt_is_read(scheduler: Scheduler) -> None:
    flowing, reading = Heard(), Heard()
    scheduler.submit([asked(text_tokens(5), 2000)], flowing)
    flowing.until(lambda: len(flowing.events) > 50)
    begun = time.monotonic()
    scheduler.submit([asked(text_tokens(4000, seed=2), 1)], reading)
    reading.end()
    read = reading.events[0][0]
    between = [at for at, _, _ in flowing.events if begun < at < read]
    assert len(between) >= 4000 // 128 // 2
    gaps = [later - earlier for earlier, later in pairwise(between)]
    assert max(gaps) < (read - begun) / 3


@pytest.mark.parametrize("scheduler", [(3, 64)], indirect=True)
def test_long_prompts_beside_an_answer_are_read_in_tiles_in_turn(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[Session, int]] = []

    def watched(context: Context, parts: Sequence[BatchEntry]) -> list[int]:
        read.extend((part.session, len(part.tokens)) for part in parts if len(part.tokens) > 1)
        return decode_batch(context, parts)

    monkeypatch.setattr("pigguf.serve.batch_planner.MAX_STEP_SECONDS", 0)
    monkeypatch.setattr("pigguf.serve.batch_planner._MIN_TILES", 1)
    monkeypatch.setattr("pigguf.serve.scheduler.decode_batch", watched)
    flowing, reading = Heard(), Heard()
    ticket = scheduler.submit([asked(text_tokens(1), 4000)], flowing)
    flowing.until(lambda: flowing.events)
    scheduler.submit([asked(text_tokens(650, seed=seed), 1) for seed in (2, 3)], reading)
    reading.end(0), reading.end(1)
    ticket.cancel()
    assert [tokens for _, tokens in read] == [65] * 20  # 64 together, and one with the answer's token
    assert all(one is not other for (one, _), (other, _) in pairwise(read))


def test_a_short_prompt_does_not_wait_for_a_long_one(scheduler: Scheduler) -> None:
    long, short = Heard(), Heard()
    scheduler.submit([asked(text_tokens(4000, seed=3), 1)], long)
    scheduler.submit([asked(text_tokens(20, seed=4), 1)], short)
    long.end(), short.end()
    assert short.events[0][0] < long.events[0][0]


def test_a_conversation_goes_on_where_its_cache_is(scheduler: Scheduler) -> None:
    first, other = text_tokens(500, seed=5), text_tokens(400, seed=6)
    drawn(scheduler, first, most=4)
    drawn(scheduler, other, most=4)
    for prompt in (first, other):
        heard = Heard()
        scheduler.submit([asked([*prompt, 70, 71], 4)], heard)
        end = heard.end()
        assert isinstance(end, Finished)
        assert end.cached_tokens == len(prompt)


@pytest.mark.parametrize("scheduler", [(4, 64)], indirect=True)
def test_a_shared_beginning_is_read_once(scheduler: Scheduler) -> None:
    shared = text_tokens(1000, seed=7)
    prompts = [[*shared, *text_tokens(9, seed=seed)[1:]] for seed in (8, 9, 10, 11)]
    together = drawn(scheduler, *prompts)
    assert scheduler.stats.prompt_tokens == 1000 + 4 * 8
    assert scheduler.stats.cached_tokens == 3 * 1000
    assert together == [drawn(scheduler, prompt)[0] for prompt in prompts]


def test_who_goes_away_frees_the_slot(scheduler: Scheduler) -> None:
    gone, waiting = Heard(), Heard()
    ticket = scheduler.submit([asked(text_tokens(6, seed=seed), 3000) for seed in (1, 2)], gone)
    gone.until(lambda: gone.of(0) and gone.of(1))
    scheduler.submit([asked(text_tokens(8), 4)], waiting)
    time.sleep(0.05)
    assert not waiting.events
    ticket.cancel()
    assert isinstance(waiting.end(), Finished)
    assert isinstance(gone.end(0), RequestFailed)
    assert len(gone.of(0)) < 3000


@pytest.mark.parametrize("scheduler", [(1, 3)], indirect=True)
def test_a_full_queue_refuses_all_or_nothing(scheduler: Scheduler) -> None:
    running, queued = Heard(), Heard()
    ticket = scheduler.submit([asked(text_tokens(6), 3000)], running)
    running.until(lambda: running.events)
    scheduler.submit([asked(text_tokens(7), 1), asked(text_tokens(8), 1)], queued)
    with pytest.raises(RequestRefused, match="2 requests are waiting, and the limit is 3") as refusal:
        scheduler.submit([asked(text_tokens(9), 1)] * 2, Heard())
    assert refusal.value.status == 429
    assert refusal.value.retry_after is not None
    assert scheduler.waiting == 2
    ticket.cancel()
    assert isinstance(queued.end(1), Finished)


@pytest.mark.parametrize("scheduler", [(1, 64)], indirect=True)
def test_clients_take_turns(scheduler: Scheduler) -> None:
    """However many one asks for; its own come in their order."""
    order: list[str] = []
    first, many, few = Heard(), Heard(), Heard()
    ticket = scheduler.submit([asked(text_tokens(6), 3000)], first)
    first.until(lambda: first.events)

    def noting(name: str, heard: Heard) -> Callable[[int, RequestEvent], None]:
        def note(index: int, event: RequestEvent) -> None:
            if isinstance(event, Finished):
                order.append(f"{name}{index}")
            heard(index, event)

        return note

    scheduler.submit([asked(text_tokens(9, seed), 2, "many") for seed in range(20)], noting("many", many))
    scheduler.submit([asked(text_tokens(9, seed), 2, "few") for seed in range(3)], noting("few", few))
    ticket.cancel()
    many.end(19), few.end(2)
    assert order[:6] == ["many0", "few0", "many1", "few1", "many2", "few2"]
    assert order[6:] == [f"many{index}" for index in range(3, 20)]


def test_a_free_slot_goes_to_who_has_fewest(scheduler: Scheduler) -> None:
    many, few = Heard(), Heard()
    ticket = scheduler.submit([asked(text_tokens(6, seed), 3000, "many") for seed in range(9)], many)
    many.until(lambda: many.of(0) and many.of(1))
    scheduler.submit([asked(text_tokens(7), 30, "few")] * 2, few)
    ticket._requests[0].is_cancelled = True
    assert isinstance(few.end(1), Finished)  # one of the two slots is its own, time and again
    assert not isinstance(many.of(1)[-1], Finished | RequestFailed)
    ticket.cancel()


@pytest.mark.parametrize("scheduler", [(4, 64)], indirect=True)
def test_prompts_are_shared_between_clients(scheduler: Scheduler) -> None:
    """Three prompts of one client take as much of a step as the one of another."""
    many, few = Heard(), Heard()
    prompts = [text_tokens(1200, seed=seed) for seed in (31, 32, 33)]
    scheduler.submit([asked(prompt, 1, "many") for prompt in prompts], many)
    scheduler.submit([asked(text_tokens(1200, seed=34), 1, "few")], few)
    few.end(), [many.end(index) for index in range(3)]
    assert few.events[0][0] < many.events[0][0]


@pytest.mark.parametrize("scheduler", [(1, 3)], indirect=True)
def test_a_full_queue_of_one_client_leaves_room_for_others(scheduler: Scheduler) -> None:
    heard = Heard()
    ticket = scheduler.submit([asked(text_tokens(6), 3000)], heard)
    heard.until(lambda: heard.events)
    tickets = [ticket]
    for name in "abcd":
        tickets.append(scheduler.submit([asked(text_tokens(6), 1, name)] * 3, Heard()))
        with pytest.raises(RequestRefused, match="3 requests are waiting, and the limit is 3"):
            scheduler.submit([asked(text_tokens(6), 1, name)], Heard())
    with pytest.raises(RequestRefused, match="12 requests are waiting, and the limit is 12"):
        scheduler.submit([asked(text_tokens(6), 1, "e")], Heard())
    for one in tickets:
        one.cancel()


@pytest.mark.parametrize("scheduler", [(1, 64)], indirect=True)
def test_who_waits_is_told_how_many_come_before(scheduler: Scheduler) -> None:
    running, others, heard = Heard(), Heard(), Heard()
    ticket = scheduler.submit([asked(text_tokens(6), 3000, "a")], running)
    running.until(lambda: running.events)
    scheduler.submit([asked(text_tokens(7, seed), 200, "b") for seed in (1, 2)], others)
    scheduler.submit([GenerationRequest(text_tokens(8), GREEDY, 1, report_progress=True, client="b")], heard)
    heard.until(lambda: heard.events)
    ticket.cancel()
    heard.end()
    assert [event for event in heard.of(0) if isinstance(event, QueuePosition)] == [
        QueuePosition(2),
        QueuePosition(1),
        QueuePosition(0),
    ]


class Kept:
    """A store that notes what is kept, and how many answers are written then."""

    def __init__(self) -> None:
        self.kept: list[tuple[int, int]] = []
        self.running: Callable[[], int] = lambda: 0

    def recall(self, session: Session, tokens: Sequence[int]) -> None:
        pass

    def keep(self, session: Session) -> None:
        self.kept.append((session.n_past, self.running()))


def test_what_was_read_is_kept_when_nobody_waits_for_it(model: Model) -> None:
    store = Kept()
    options = ContextOptions(length=WINDOW, sequences=2, batch=128)
    with Context(model, options, prompt_cache=store) as context:
        with Scheduler(context) as scheduler:
            store.running = lambda: scheduler.running
            long, short = Heard(), Heard()
            scheduler.submit([asked(text_tokens(9), 400)], long)
            scheduler.submit([asked(text_tokens(50, seed=3), 2)], short)
            short.end()
            assert not store.kept
            long.end()
            wait_until(lambda: len(store.kept) == 2)
            drawn(scheduler, text_tokens(60, seed=5), most=1)
        assert {running for _, running in store.kept} == {0}
        assert {51, 60} < {length for length, _ in store.kept}  # the last one when it was closed


def test_what_takes_too_long_fails(scheduler: Scheduler) -> None:
    heard = Heard()
    scheduler.submit([asked(text_tokens(6), 4000)], heard, timeout=0.2)
    end = heard.end()
    assert isinstance(end, RequestFailed)
    assert isinstance(end.error, RequestRefused)
    assert end.error.status == 504
    assert scheduler.running == 0


@pytest.mark.parametrize("scheduler", [(1, 64)], indirect=True)
def test_draining_ends_what_waits_and_finishes_what_runs(scheduler: Scheduler) -> None:
    running, waiting = Heard(), Heard()
    scheduler.submit([asked(text_tokens(6), 300)], running)
    running.until(lambda: running.events)
    scheduler.submit([asked(text_tokens(7), 1)], waiting)
    scheduler.drain()
    end = waiting.end()
    assert isinstance(end, RequestFailed)
    assert isinstance(end.error, RequestRefused)
    assert end.error.status == 503
    with pytest.raises(RequestRefused, match="shutting down"):
        scheduler.submit([asked(text_tokens(7), 1)], waiting)
    assert len(running.tokens()) == 300


def test_a_grammar_that_is_none_fails_alone(scheduler: Scheduler) -> None:
    heard = Heard()
    wrong = GenerationRequest(text_tokens(5), SamplingParams(grammar="this is none"), 4)
    scheduler.submit([wrong, asked(text_tokens(5), 4)], heard)
    assert isinstance(heard.end(0), RequestFailed)
    assert len(heard.tokens(1)) == 4


@pytest.fixture
def opening_brackets(tmp_path: Path) -> Iterator[Scheduler]:
    """Of a model that writes nothing else."""
    path = write_next_token_model(tmp_path / "tiny.gguf", TEMPLATE, {"[": "["})
    options = ContextOptions(length=512, sequences=2)
    with Model.open(path) as model, Context(model, options) as context, Scheduler(context) as scheduler:
        yield scheduler


def test_a_grammar_that_holds_everybody_up_ends_its_answer(opening_brackets: Scheduler) -> None:
    """There are twice as many ways to read each bracket as the one before."""
    arrays = [{"type": "array", "items": {"$ref": "#"}, "maxItems": most} for most in (8, 9)]
    grammar = json_schema_to_grammar({"anyOf": arrays})
    prompt = [3 + ord("[")]
    held, other = Heard(), Heard()
    begun = time.monotonic()
    opening_brackets.submit(
        [GenerationRequest(prompt, SamplingParams(temperature=0, grammar=grammar), 200)], held
    )
    end = held.end()
    assert isinstance(end, RequestFailed)
    assert isinstance(end.error, RequestRefused)
    assert (end.error.status, end.error.code) == (400, "schema_too_large")
    opening_brackets.submit([GenerationRequest(prompt, GREEDY, 5)], other)
    assert isinstance(other.end(), Finished)
    assert time.monotonic() - begun < 40


def test_nothing_of_a_failure_that_nobody_foresaw_is_logged_but_its_place(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: object) -> None:
        raise ValueError("my secret")

    monkeypatch.setattr("pigguf.serve.slots.create_sampler", failing)
    heard = Heard()
    scheduler.submit([asked(text_tokens(5), 4)], heard)
    end = heard.end()
    assert isinstance(end, RequestFailed)
    assert end.error.message == "internal server error: ValueError"
    assert "ValueError in failing:" in caplog.text
    assert "secret" not in caplog.text


def test_a_full_window_ends_an_answer(scheduler: Scheduler) -> None:
    heard = Heard()
    scheduler.submit([asked(text_tokens(WINDOW - 3, seed=2), 100)], heard)
    end = heard.end()
    assert isinstance(end, Finished)
    assert (end.reason, end.generated_tokens) == ("window", 4)


def test_probabilities_are_those_of_all_tokens(scheduler: Scheduler, model: Model) -> None:
    heard = Heard()
    scheduler.submit([GenerationRequest(text_tokens(5), GREEDY, 3, logprobs=model.vocab_size)], heard)
    heard.end()
    for event in heard.of(0)[:-1]:
        assert isinstance(event, TextChunk)
        [one] = event.tokens
        assert one.top_logprobs[0] == (one.token, one.logprob)
        probabilities = [2.718281828459045**logprob for _, logprob in one.top_logprobs]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)


def test_reading_is_told_from_what_was_reused_to_the_end(scheduler: Scheduler) -> None:
    prompt = text_tokens(3000, seed=21)
    drawn(scheduler, prompt[:500], most=1)
    heard = Heard()
    scheduler.submit([GenerationRequest(prompt, GREEDY, 2, report_progress=True)], heard)
    heard.end()
    told = [event for event in heard.of(0) if isinstance(event, PrefillProgress)]
    assert heard.of(0)[: len(told)] == told
    assert (told[0].prompt_tokens, told[0].cached_tokens, told[0].processed_tokens) == (3000, 500, 500)
    assert told[-1].processed_tokens == 3000
    assert [one.processed_tokens for one in told] == sorted(one.processed_tokens for one in told)
    assert len(told) <= 2 + told[-1].seconds / 0.25
    assert not any(isinstance(event, PrefillProgress) for event in told_nothing(scheduler, prompt))


def told_nothing(scheduler: Scheduler, prompt: Sequence[int]) -> list[RequestEvent]:
    """What comes of a request that did not ask to be told."""
    heard = Heard()
    scheduler.submit([GenerationRequest(prompt, GREEDY, 2)], heard)
    heard.end()
    return heard.of(0)
