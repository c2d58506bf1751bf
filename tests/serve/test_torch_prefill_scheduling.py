"""Long prompts in the PyTorch prefill backend, with steps for all other requests in between."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from serve.test_scheduler import EventRecorder, generate, greedy_request
from support.tiny_gguf import linear, text_tokens, write_tiny

from pigguf.inference.engine import Context, ContextOptions, Model, Session
from pigguf.inference.engine.batch_decode import BatchEntry, decode_batch
from pigguf.inference.torch_prefill import TorchPrefiller
from pigguf.progress import Progress
from pigguf.serve.events import Finished, PrefillProgress, RequestEvent, RequestFailed, TextChunk
from pigguf.serve.generation_request import GenerationRequest
from pigguf.serve.scheduler import Scheduler

WINDOW = 16384


class RecordingPrefiller(TorchPrefiller):
    """Takes every long prompt, whatever the CPU; records how many tokens it has computed."""

    def __init__(self, model: Model, options: ContextOptions) -> None:
        super().__init__(model, options)
        self.counts: list[int] = []

    def should_prefill(self, n_past: int, count: int) -> bool:
        return self._shape is not None and count > 1000

    def prefill(self, session: Session, tokens: Sequence[int], progress: Progress) -> None:
        n_past = session.n_past
        try:
            super().prefill(session, tokens, progress)
        finally:
            self.counts.append(session.n_past - n_past)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path: Path = write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", linear(4.0, WINDOW))
    with Model.open(path, gpu_layers=0) as model:
        yield model


@pytest.fixture(params=[2, 1])
def served(model: Model, request: pytest.FixtureRequest) -> Iterator[tuple[Scheduler, RecordingPrefiller]]:
    options = ContextOptions(length=WINDOW, sequences=request.param, batch=256)
    backend = RecordingPrefiller(model, options)
    with Context(model, options, prefiller=backend) as context, Scheduler(context) as scheduler:
        yield scheduler, backend


def long_request(count: int) -> GenerationRequest:
    return GenerationRequest(text_tokens(count), max_tokens=4, report_progress=True, client="long")


def test_a_long_prompt_alone_goes_to_the_backend(served: tuple[Scheduler, RecordingPrefiller]) -> None:
    scheduler, backend = served
    recorder = EventRecorder()
    scheduler.submit([long_request(9000)], recorder)
    end = recorder.wait_for_end()
    assert isinstance(end, Finished)
    assert (backend.counts, end.generated_tokens) == ([8999], 4)
    progress = [
        event.processed_tokens for event in recorder.events_of(0) if isinstance(event, PrefillProgress)
    ]
    assert (progress[0], progress[-1]) == (0, 9000)
    assert progress == sorted(progress)
    assert len(progress) > 2
    assert scheduler.stats.prompt_tokens == 9000


@pytest.mark.parametrize("served", [2], indirect=True)
def test_other_requests_are_answered_meanwhile(served: tuple[Scheduler, RecordingPrefiller]) -> None:
    scheduler, backend = served
    first, second = EventRecorder(), EventRecorder()

    def deliver(index: int, event: RequestEvent) -> None:
        first(index, event)
        if isinstance(event, PrefillProgress) and event.processed_tokens > 0 and not second.events:
            scheduler.submit([greedy_request([1, 2, 3], 8, "short")], second)

    scheduler.submit([long_request(16000)], deliver)
    assert isinstance(second.wait_for_end(), Finished)
    assert not backend.counts
    assert isinstance(first.wait_for_end(), Finished)
    assert backend.counts == [15999]
    assert scheduler.stats.prompt_tokens == 16000 + 3
    assert second.wait_for_tokens() == generate(scheduler, [1, 2, 3], max_tokens=8)[0]


@pytest.mark.parametrize("served", [2], indirect=True)
def test_steps_in_between_do_not_change_the_result(served: tuple[Scheduler, RecordingPrefiller]) -> None:
    scheduler, backend = served
    long, other = EventRecorder(), EventRecorder()
    scheduler.submit([greedy_request(text_tokens(9000), 12, "long")], long)
    scheduler.submit([greedy_request(text_tokens(300), 200, "short")], other)
    interrupted, beside = long.wait_for_tokens(), other.wait_for_tokens()
    assert backend.counts == [8999]
    # so that neither cache has the prompts
    scheduler.submit([greedy_request([7, *text_tokens(8999)], 1)] * 2, EventRecorder())
    alone = generate(scheduler, text_tokens(9000), max_tokens=12)[0]
    assert len(interrupted) == len(alone) == 12
    assert interrupted[0] == alone[0]
    assert beside == generate(scheduler, text_tokens(300), max_tokens=200)[0]


def test_a_second_long_prompt_is_computed_meanwhile(model: Model) -> None:
    options = ContextOptions(length=WINDOW, sequences=3, batch=256)
    backend = RecordingPrefiller(model, options)
    a, b = EventRecorder(), EventRecorder()
    with Context(model, options, prefiller=backend) as context, Scheduler(context) as scheduler:
        scheduler.submit([greedy_request(text_tokens(16000), 4, "a")], a)
        second = GenerationRequest([9, *text_tokens(6000)], max_tokens=4, report_progress=True, client="b")
        scheduler.submit([second], b)
        assert isinstance(a.wait_for_end(), Finished)
        assert isinstance(b.wait_for_end(), Finished)
    first_token = next(at for at, _, event in a.events if isinstance(event, TextChunk))
    assert any(
        isinstance(event, PrefillProgress) and event.processed_tokens and at < first_token
        for at, _, event in b.events
    )
    assert backend.counts[0] == 15999
    assert scheduler.stats.prompt_tokens == 16000 + 6001


def test_the_backend_gets_as_much_time_as_other_prompts(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ContextOptions(length=WINDOW, sequences=2, batch=256)
    backend = RecordingPrefiller(model, options)
    taken: list[tuple[float, float]] = []

    def timed(context: Context, entries: Sequence[BatchEntry]) -> list[int]:
        started = time.perf_counter()
        indices = decode_batch(context, entries)
        if any(len(entry.tokens) > 1 for entry in entries) and not backend.counts:
            taken.append((started, time.perf_counter()))
        return indices

    monkeypatch.setattr("pigguf.serve.scheduler.decode_batch", timed)
    a, b = EventRecorder(), EventRecorder()
    with Context(model, options, prefiller=backend) as context, Scheduler(context) as scheduler:
        scheduler.submit([greedy_request(text_tokens(16000), 4, "a")], a)
        scheduler.submit([greedy_request([9, *text_tokens(16000)], 4, "b")], b)
        assert isinstance(a.wait_for_end(), Finished)
    assert len(taken) > 2
    for (started, ended), (later, _) in pairwise(taken):
        assert later - ended >= ended - started


def test_cancelling_stops_the_backend(served: tuple[Scheduler, RecordingPrefiller]) -> None:
    scheduler, backend = served
    recorder, after = EventRecorder(), EventRecorder()

    def deliver(index: int, event: RequestEvent) -> None:
        recorder(index, event)
        if isinstance(event, PrefillProgress) and 0 < event.processed_tokens < 12000:
            handle.cancel()

    handle = scheduler.submit([long_request(16000)], deliver)
    assert isinstance(recorder.wait_for_end(), RequestFailed)
    assert backend.counts[0] < 15999
    scheduler.submit([greedy_request([1, 2, 3], 8)], after)
    assert isinstance(after.wait_for_end(), Finished)


def test_a_waiting_request_does_not_stop_the_backend(model: Model) -> None:
    options = ContextOptions(length=WINDOW, batch=256)
    backend = RecordingPrefiller(model, options)
    first, second = EventRecorder(), EventRecorder()
    with Context(model, options, prefiller=backend) as context, Scheduler(context) as scheduler:

        def deliver(index: int, event: RequestEvent) -> None:
            first(index, event)
            if (
                isinstance(event, PrefillProgress)
                and event.processed_tokens > 0
                and not second.events
                and not backend.counts
            ):
                scheduler.submit([greedy_request([1, 2, 3], 4, "short")], second)

        scheduler.submit([long_request(9000)], deliver)
        assert isinstance(first.wait_for_end(), Finished)
        assert isinstance(second.wait_for_end(), Finished)
    assert backend.counts == [8999]
