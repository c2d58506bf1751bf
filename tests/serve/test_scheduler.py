"""The scheduler: the same answers as a session's, latency, fairness, prefix reuse, cancelling, refusing."""

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


class EventRecorder:
    """Records the events of requests, with the time of each."""

    def __init__(self) -> None:
        self.events: list[tuple[float, int, RequestEvent]] = []
        self._changed = threading.Condition()

    def __call__(self, index: int, event: RequestEvent) -> None:
        with self._changed:
            self.events.append((time.monotonic(), index, event))
            self._changed.notify_all()

    def events_of(self, index: int) -> list[RequestEvent]:
        return [event for _, at, event in self.events if at == index]

    def wait_for_end(self, index: int = 0) -> Finished | RequestFailed:
        self.wait_until(
            lambda: any(isinstance(event, Finished | RequestFailed) for event in self.events_of(index))
        )
        last = self.events_of(index)[-1]
        assert isinstance(last, Finished | RequestFailed)
        return last

    def wait_for_tokens(self, index: int = 0) -> list[int]:
        end = self.wait_for_end(index)
        assert isinstance(end, Finished), end
        chunks = [event for event in self.events_of(index) if isinstance(event, TextChunk)]
        return [sampled.token for chunk in chunks for sampled in chunk.tokens]

    def wait_until(self, condition: object) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, timeout=60), self.events  # type: ignore[arg-type]


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


def greedy_request(prompt: Sequence[int], max_tokens: int = 24, client: str = "") -> GenerationRequest:
    return GenerationRequest(prompt, GREEDY, max_tokens, logprobs=0, client=client)


def generate(scheduler: Scheduler, *prompts: Sequence[int], max_tokens: int = 24) -> list[list[int]]:
    recorder = EventRecorder()
    scheduler.submit([greedy_request(prompt, max_tokens) for prompt in prompts], recorder)
    return [recorder.wait_for_tokens(index) for index in range(len(prompts))]


def test_answers_are_those_of_a_session_alone(model: Model, scheduler: Scheduler) -> None:
    prompts = [text_tokens(size, seed=size) for size in (300, 9, 130, 41)]
    options = ContextOptions(length=WINDOW, cache_k="f32", cache_v="f32", batch=128)
    with Context(model, options) as context, context.sequence() as session:
        expected = []
        for prompt in prompts:
            session.set_prompt(prompt)
            expected.append(list(session.generate(GREEDY, 24, prompt_lookup=False)))
    assert generate(scheduler, *prompts) == expected
    for prompt, tokens in zip(prompts, expected, strict=True):
        assert generate(scheduler, prompt) == [tokens]


def test_answers_keep_flowing_during_a_long_prefill(scheduler: Scheduler) -> None:
    generating, prefilling = EventRecorder(), EventRecorder()
    scheduler.submit([greedy_request(text_tokens(5), 2000)], generating)
    generating.wait_until(lambda: len(generating.events) > 50)
    started = time.monotonic()
    scheduler.submit([greedy_request(text_tokens(4000, seed=2), 1)], prefilling)
    prefilling.wait_for_end()
    read = prefilling.events[0][0]
    between = [at for at, _, _ in generating.events if started < at < read]
    assert len(between) >= 4000 // 128 // 2
    gaps = [later - earlier for earlier, later in pairwise(between)]
    assert max(gaps) < (read - started) / 3


@pytest.mark.parametrize("scheduler", [(3, 64)], indirect=True)
def test_long_prompts_beside_an_answer_take_turns_in_chunks_of_tiles(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[Session, int]] = []

    def recording_decode(context: Context, parts: Sequence[BatchEntry]) -> list[int]:
        read.extend((part.session, len(part.tokens)) for part in parts if len(part.tokens) > 1)
        return decode_batch(context, parts)

    monkeypatch.setattr("pigguf.serve.batch_planner.MAX_STEP_SECONDS", 0)
    monkeypatch.setattr("pigguf.serve.batch_planner._MIN_TILES", 1)
    monkeypatch.setattr("pigguf.serve.scheduler.decode_batch", recording_decode)
    generating, prefilling = EventRecorder(), EventRecorder()
    handle = scheduler.submit([greedy_request(text_tokens(1), 4000)], generating)
    generating.wait_until(lambda: generating.events)
    scheduler.submit([greedy_request(text_tokens(650, seed=seed), 1) for seed in (2, 3)], prefilling)
    prefilling.wait_for_end(0), prefilling.wait_for_end(1)
    handle.cancel()
    assert [tokens for _, tokens in read] == [65] * 20  # 64 by themselves, and one with the answer's token
    assert all(one is not other for (one, _), (other, _) in pairwise(read))


def test_a_short_prompt_does_not_wait_for_a_long_one(scheduler: Scheduler) -> None:
    long, short = EventRecorder(), EventRecorder()
    scheduler.submit([greedy_request(text_tokens(4000, seed=3), 1)], long)
    scheduler.submit([greedy_request(text_tokens(20, seed=4), 1)], short)
    long.wait_for_end(), short.wait_for_end()
    assert short.events[0][0] < long.events[0][0]


def test_a_conversation_continues_in_the_slot_with_its_cache(scheduler: Scheduler) -> None:
    first, other = text_tokens(500, seed=5), text_tokens(400, seed=6)
    generate(scheduler, first, max_tokens=4)
    generate(scheduler, other, max_tokens=4)
    for prompt in (first, other):
        recorder = EventRecorder()
        scheduler.submit([greedy_request([*prompt, 70, 71], 4)], recorder)
        end = recorder.wait_for_end()
        assert isinstance(end, Finished)
        assert end.cached_tokens == len(prompt)


@pytest.mark.parametrize("scheduler", [(4, 64)], indirect=True)
def test_a_shared_prefix_is_computed_once(scheduler: Scheduler) -> None:
    shared = text_tokens(1000, seed=7)
    prompts = [[*shared, *text_tokens(9, seed=seed)[1:]] for seed in (8, 9, 10, 11)]
    together = generate(scheduler, *prompts)
    assert scheduler.stats.prompt_tokens == 1000 + 4 * 8
    assert scheduler.stats.cached_tokens == 3 * 1000
    assert together == [generate(scheduler, prompt)[0] for prompt in prompts]


def test_cancelling_frees_the_slot(scheduler: Scheduler) -> None:
    gone, waiting = EventRecorder(), EventRecorder()
    handle = scheduler.submit([greedy_request(text_tokens(6, seed=seed), 3000) for seed in (1, 2)], gone)
    gone.wait_until(lambda: gone.events_of(0) and gone.events_of(1))
    scheduler.submit([greedy_request(text_tokens(8), 4)], waiting)
    time.sleep(0.05)
    assert not waiting.events
    handle.cancel()
    assert isinstance(waiting.wait_for_end(), Finished)
    assert isinstance(gone.wait_for_end(0), RequestFailed)
    assert len(gone.events_of(0)) < 3000


@pytest.mark.parametrize("scheduler", [(1, 3)], indirect=True)
def test_a_full_queue_refuses_all_or_nothing(scheduler: Scheduler) -> None:
    running, queued = EventRecorder(), EventRecorder()
    handle = scheduler.submit([greedy_request(text_tokens(6), 3000)], running)
    running.wait_until(lambda: running.events)
    scheduler.submit([greedy_request(text_tokens(7), 1), greedy_request(text_tokens(8), 1)], queued)
    with pytest.raises(RequestRefused, match="2 requests are waiting, and the limit is 3") as refusal:
        scheduler.submit([greedy_request(text_tokens(9), 1)] * 2, EventRecorder())
    assert refusal.value.status == 429
    assert refusal.value.retry_after is not None
    assert scheduler.waiting == 2
    handle.cancel()
    assert isinstance(queued.wait_for_end(1), Finished)


@pytest.mark.parametrize("scheduler", [(1, 64)], indirect=True)
def test_clients_take_turns(scheduler: Scheduler) -> None:
    """However many requests one has; requests of one client keep their order."""
    order: list[str] = []
    first, many, few = EventRecorder(), EventRecorder(), EventRecorder()
    handle = scheduler.submit([greedy_request(text_tokens(6), 3000)], first)
    first.wait_until(lambda: first.events)

    def recording(name: str, recorder: EventRecorder) -> Callable[[int, RequestEvent], None]:
        def record(index: int, event: RequestEvent) -> None:
            if isinstance(event, Finished):
                order.append(f"{name}{index}")
            recorder(index, event)

        return record

    scheduler.submit(
        [greedy_request(text_tokens(9, seed), 2, "many") for seed in range(20)], recording("many", many)
    )
    scheduler.submit(
        [greedy_request(text_tokens(9, seed), 2, "few") for seed in range(3)], recording("few", few)
    )
    handle.cancel()
    many.wait_for_end(19), few.wait_for_end(2)
    assert order[:6] == ["many0", "few0", "many1", "few1", "many2", "few2"]
    assert order[6:] == [f"many{index}" for index in range(3, 20)]


def test_a_free_slot_goes_to_the_client_with_the_fewest(scheduler: Scheduler) -> None:
    many, few = EventRecorder(), EventRecorder()
    handle = scheduler.submit([greedy_request(text_tokens(6, seed), 3000, "many") for seed in range(9)], many)
    many.wait_until(lambda: many.events_of(0) and many.events_of(1))
    scheduler.submit([greedy_request(text_tokens(7), 30, "few")] * 2, few)
    handle._requests[0].is_cancelled = True
    assert isinstance(few.wait_for_end(1), Finished)  # one of the two slots is its own each time
    assert not isinstance(many.events_of(1)[-1], Finished | RequestFailed)
    handle.cancel()


@pytest.mark.parametrize("scheduler", [(4, 64)], indirect=True)
def test_prefill_is_divided_between_clients(scheduler: Scheduler) -> None:
    """Three prompts of one client get as much of a step as one prompt of another."""
    many, few = EventRecorder(), EventRecorder()
    prompts = [text_tokens(1200, seed=seed) for seed in (31, 32, 33)]
    scheduler.submit([greedy_request(prompt, 1, "many") for prompt in prompts], many)
    scheduler.submit([greedy_request(text_tokens(1200, seed=34), 1, "few")], few)
    few.wait_for_end(), [many.wait_for_end(index) for index in range(3)]
    assert few.events[0][0] < many.events[0][0]


@pytest.mark.parametrize("scheduler", [(1, 3)], indirect=True)
def test_a_full_queue_of_one_client_does_not_block_others(scheduler: Scheduler) -> None:
    recorder = EventRecorder()
    handle = scheduler.submit([greedy_request(text_tokens(6), 3000)], recorder)
    recorder.wait_until(lambda: recorder.events)
    handles = [handle]
    for name in "abcd":
        handles.append(scheduler.submit([greedy_request(text_tokens(6), 1, name)] * 3, EventRecorder()))
        with pytest.raises(RequestRefused, match="3 requests are waiting, and the limit is 3"):
            scheduler.submit([greedy_request(text_tokens(6), 1, name)], EventRecorder())
    with pytest.raises(RequestRefused, match="12 requests are waiting, and the limit is 12"):
        scheduler.submit([greedy_request(text_tokens(6), 1, "e")], EventRecorder())
    for one in handles:
        one.cancel()


@pytest.mark.parametrize("scheduler", [(1, 64)], indirect=True)
def test_waiting_requests_report_their_position(scheduler: Scheduler) -> None:
    running, others, recorder = EventRecorder(), EventRecorder(), EventRecorder()
    handle = scheduler.submit([greedy_request(text_tokens(6), 3000, "a")], running)
    running.wait_until(lambda: running.events)
    scheduler.submit([greedy_request(text_tokens(7, seed), 200, "b") for seed in (1, 2)], others)
    scheduler.submit(
        [GenerationRequest(text_tokens(8), GREEDY, 1, report_progress=True, client="b")], recorder
    )
    recorder.wait_until(lambda: recorder.events)
    handle.cancel()
    recorder.wait_for_end()
    assert [event for event in recorder.events_of(0) if isinstance(event, QueuePosition)] == [
        QueuePosition(2),
        QueuePosition(1),
        QueuePosition(0),
    ]


class RecordingPromptCache:
    """Records how many tokens are saved, and how many requests run at that time."""

    def __init__(self) -> None:
        self.saved: list[tuple[int, int]] = []
        self.running: Callable[[], int] = lambda: 0

    def restore(self, session: Session, tokens: Sequence[int]) -> None:
        pass

    def save(self, session: Session) -> None:
        self.saved.append((session.n_past, self.running()))


def test_caches_are_saved_when_the_scheduler_is_idle(model: Model) -> None:
    prompt_cache = RecordingPromptCache()
    options = ContextOptions(length=WINDOW, sequences=2, batch=128)
    with Context(model, options, prompt_cache=prompt_cache) as context:
        with Scheduler(context) as scheduler:
            prompt_cache.running = lambda: scheduler.running
            long, short = EventRecorder(), EventRecorder()
            scheduler.submit([greedy_request(text_tokens(9), 400)], long)
            scheduler.submit([greedy_request(text_tokens(50, seed=3), 2)], short)
            short.wait_for_end()
            assert not prompt_cache.saved
            long.wait_for_end()
            wait_until(lambda: len(prompt_cache.saved) == 2)
            generate(scheduler, text_tokens(60, seed=5), max_tokens=1)
        assert {running for _, running in prompt_cache.saved} == {0}
        assert {51, 60} < {length for length, _ in prompt_cache.saved}  # the last one when it was closed


def test_a_request_fails_at_its_timeout(scheduler: Scheduler) -> None:
    recorder = EventRecorder()
    scheduler.submit([greedy_request(text_tokens(6), 4000)], recorder, timeout=0.2)
    end = recorder.wait_for_end()
    assert isinstance(end, RequestFailed)
    assert isinstance(end.error, RequestRefused)
    assert end.error.status == 504
    assert scheduler.running == 0


@pytest.mark.parametrize("scheduler", [(1, 64)], indirect=True)
def test_draining_refuses_waiting_and_finishes_running_requests(scheduler: Scheduler) -> None:
    running, waiting = EventRecorder(), EventRecorder()
    scheduler.submit([greedy_request(text_tokens(6), 300)], running)
    running.wait_until(lambda: running.events)
    scheduler.submit([greedy_request(text_tokens(7), 1)], waiting)
    scheduler.drain()
    end = waiting.wait_for_end()
    assert isinstance(end, RequestFailed)
    assert isinstance(end.error, RequestRefused)
    assert end.error.status == 503
    with pytest.raises(RequestRefused, match="shutting down"):
        scheduler.submit([greedy_request(text_tokens(7), 1)], waiting)
    assert len(running.wait_for_tokens()) == 300


def test_an_invalid_grammar_fails_alone(scheduler: Scheduler) -> None:
    recorder = EventRecorder()
    wrong = GenerationRequest(text_tokens(5), SamplingParams(grammar="not a grammar"), 4)
    scheduler.submit([wrong, greedy_request(text_tokens(5), 4)], recorder)
    assert isinstance(recorder.wait_for_end(0), RequestFailed)
    assert len(recorder.wait_for_tokens(1)) == 4


@pytest.fixture
def opening_brackets(tmp_path: Path) -> Iterator[Scheduler]:
    """Return the scheduler of a model that generates only opening brackets."""
    path = write_next_token_model(tmp_path / "tiny.gguf", TEMPLATE, {"[": "["})
    options = ContextOptions(length=512, sequences=2)
    with Model.open(path) as model, Context(model, options) as context, Scheduler(context) as scheduler:
        yield scheduler


def test_a_grammar_that_delays_the_others_ends_its_request(opening_brackets: Scheduler) -> None:
    """Each bracket doubles the ways in which the text can be parsed."""
    arrays = [{"type": "array", "items": {"$ref": "#"}, "maxItems": most} for most in (8, 9)]
    grammar = json_schema_to_grammar({"anyOf": arrays})
    prompt = [3 + ord("[")]
    slow, other = EventRecorder(), EventRecorder()
    started = time.monotonic()
    opening_brackets.submit(
        [GenerationRequest(prompt, SamplingParams(temperature=0, grammar=grammar), 200)], slow
    )
    end = slow.wait_for_end()
    assert isinstance(end, RequestFailed)
    assert isinstance(end.error, RequestRefused)
    assert (end.error.status, end.error.code) == (400, "schema_too_large")
    opening_brackets.submit([GenerationRequest(prompt, GREEDY, 5)], other)
    assert isinstance(other.wait_for_end(), Finished)
    assert time.monotonic() - started < 40


def test_only_class_and_location_of_an_unexpected_error_are_logged(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: object) -> None:
        raise ValueError("my secret")

    monkeypatch.setattr("pigguf.serve.slots.create_sampler", failing)
    recorder = EventRecorder()
    scheduler.submit([greedy_request(text_tokens(5), 4)], recorder)
    end = recorder.wait_for_end()
    assert isinstance(end, RequestFailed)
    assert end.error.message == "internal server error: ValueError"
    assert "ValueError in failing:" in caplog.text
    assert "secret" not in caplog.text


def test_a_full_window_ends_an_answer(scheduler: Scheduler) -> None:
    recorder = EventRecorder()
    scheduler.submit([greedy_request(text_tokens(WINDOW - 3, seed=2), 100)], recorder)
    end = recorder.wait_for_end()
    assert isinstance(end, Finished)
    assert (end.reason, end.generated_tokens) == ("window", 4)


def test_logprobs_are_over_the_whole_vocabulary(scheduler: Scheduler, model: Model) -> None:
    recorder = EventRecorder()
    scheduler.submit([GenerationRequest(text_tokens(5), GREEDY, 3, logprobs=model.vocab_size)], recorder)
    recorder.wait_for_end()
    for event in recorder.events_of(0)[:-1]:
        assert isinstance(event, TextChunk)
        [sampled] = event.tokens
        assert sampled.top_logprobs[0] == (sampled.token, sampled.logprob)
        probabilities = [2.718281828459045**logprob for _, logprob in sampled.top_logprobs]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)


def test_prefill_progress_goes_from_the_cached_tokens_to_all(scheduler: Scheduler) -> None:
    prompt = text_tokens(3000, seed=21)
    generate(scheduler, prompt[:500], max_tokens=1)
    recorder = EventRecorder()
    scheduler.submit([GenerationRequest(prompt, GREEDY, 2, report_progress=True)], recorder)
    recorder.wait_for_end()
    progress = [event for event in recorder.events_of(0) if isinstance(event, PrefillProgress)]
    assert recorder.events_of(0)[: len(progress)] == progress
    assert (progress[0].prompt_tokens, progress[0].cached_tokens, progress[0].processed_tokens) == (
        3000,
        500,
        500,
    )
    assert progress[-1].processed_tokens == 3000
    assert [event.processed_tokens for event in progress] == sorted(
        event.processed_tokens for event in progress
    )
    assert len(progress) <= 2 + progress[-1].seconds / 0.25
    assert not any(isinstance(event, PrefillProgress) for event in events_without_progress(scheduler, prompt))


def events_without_progress(scheduler: Scheduler, prompt: Sequence[int]) -> list[RequestEvent]:
    """Return the events of a request that did not ask for progress."""
    recorder = EventRecorder()
    scheduler.submit([GenerationRequest(prompt, GREEDY, 2)], recorder)
    recorder.wait_for_end()
    return recorder.events_of(0)
