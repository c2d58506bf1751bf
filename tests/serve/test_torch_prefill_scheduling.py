"""Long prompts in PyTorch, and steps for all others in between."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from serve.test_scheduler import Heard, asked, drawn
from support.tiny_gguf import linear, text_tokens, write_tiny

from pigguf.inference.engine import Context, ContextOptions, Model, Session
from pigguf.inference.engine.batch_decode import BatchEntry, decode_batch
from pigguf.inference.torch_prefill import TorchPrefiller
from pigguf.progress import Progress
from pigguf.serve.events import Finished, PrefillProgress, RequestEvent, RequestFailed, TextChunk
from pigguf.serve.generation_request import GenerationRequest
from pigguf.serve.scheduler import Scheduler

WINDOW = 16384


class Always(TorchPrefiller):
    """Worth it for every long prompt, whatever the CPU; notes what it has read."""

    def __init__(self, model: Model, options: ContextOptions) -> None:
        super().__init__(model, options)
        self.counts: list[int] = []

    def should_prefill(self, held: int, count: int) -> bool:
        return self._shape is not None and count > 1000

    def read(self, session: Session, tokens: Sequence[int], progress: Progress) -> None:
        held = session.n_past
        try:
            super().prefill(session, tokens, progress)
        finally:
            self.counts.append(session.n_past - held)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path: Path = write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", linear(4.0, WINDOW))
    with Model.open(path, gpu_layers=0) as model:
        yield model


@pytest.fixture(params=[2, 1])
def served(model: Model, request: pytest.FixtureRequest) -> Iterator[tuple[Scheduler, Always]]:
    options = ContextOptions(length=WINDOW, sequences=request.param, batch=256)
    reader = Always(model, options)
    with Context(model, options, prefiller=reader) as context, Scheduler(context) as scheduler:
        yield scheduler, reader


def long_request(count: int) -> GenerationRequest:
    return GenerationRequest(text_tokens(count), max_tokens=4, report_progress=True, client="long")


def test_a_long_prompt_alone_is_the_reader_s(served: tuple[Scheduler, Always]) -> None:
    scheduler, reader = served
    heard = Heard()
    scheduler.submit([long_request(9000)], heard)
    end = heard.end()
    assert isinstance(end, Finished)
    assert (reader.counts, end.generated_tokens) == ([8999], 4)
    told = [event.processed_tokens for event in heard.of(0) if isinstance(event, PrefillProgress)]
    assert (told[0], told[-1]) == (0, 9000)
    assert told == sorted(told)
    assert len(told) > 2
    assert scheduler.stats.prompt_tokens == 9000


@pytest.mark.parametrize("served", [2], indirect=True)
def test_others_are_answered_meanwhile(served: tuple[Scheduler, Always]) -> None:
    scheduler, reader = served
    first, second = Heard(), Heard()

    def deliver(index: int, event: RequestEvent) -> None:
        first(index, event)
        if isinstance(event, PrefillProgress) and event.processed_tokens > 0 and not second.events:
            scheduler.submit([asked([1, 2, 3], 8, "short")], second)

    scheduler.submit([long_request(16000)], deliver)
    assert isinstance(second.end(), Finished)
    assert not reader.counts
    assert isinstance(first.end(), Finished)
    assert reader.counts == [15999]
    assert scheduler.stats.prompt_tokens == 16000 + 3
    assert second.tokens() == drawn(scheduler, [1, 2, 3], most=8)[0]


@pytest.mark.parametrize("served", [2], indirect=True)
def test_what_a_reader_is_disturbed_in_comes_out_the_same(served: tuple[Scheduler, Always]) -> None:
    scheduler, reader = served
    long, other = Heard(), Heard()
    scheduler.submit([asked(text_tokens(9000), 12, "long")], long)
    scheduler.submit([asked(text_tokens(300), 200, "short")], other)
    disturbed, beside = long.tokens(), other.tokens()
    assert reader.counts == [8999]
    scheduler.submit([asked([7, *text_tokens(8999)], 1)] * 2, Heard())  # both caches hold something else then
    alone = drawn(scheduler, text_tokens(9000), most=12)[0]
    assert len(disturbed) == len(alone) == 12
    assert disturbed[0] == alone[0]
    assert beside == drawn(scheduler, text_tokens(300), most=200)[0]


def test_a_second_long_prompt_is_read_meanwhile(model: Model) -> None:
    options = ContextOptions(length=WINDOW, sequences=3, batch=256)
    reader = Always(model, options)
    a, b = Heard(), Heard()
    with Context(model, options, prefiller=reader) as context, Scheduler(context) as scheduler:
        scheduler.submit([asked(text_tokens(16000), 4, "a")], a)
        second = GenerationRequest([9, *text_tokens(6000)], max_tokens=4, report_progress=True, client="b")
        scheduler.submit([second], b)
        assert isinstance(a.end(), Finished)
        assert isinstance(b.end(), Finished)
    first_token = next(at for at, _, event in a.events if isinstance(event, TextChunk))
    assert any(
        isinstance(event, PrefillProgress) and event.processed_tokens and at < first_token
        for at, _, event in b.events
    )
    assert reader.counts[0] == 15999
    assert scheduler.stats.prompt_tokens == 16000 + 6001


def test_the_reader_has_as_much_time_as_prompts_beside_it(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ContextOptions(length=WINDOW, sequences=2, batch=256)
    reader = Always(model, options)
    taken: list[tuple[float, float]] = []

    def timed(context: Context, parts: Sequence[BatchEntry]) -> list[int]:
        begun = time.perf_counter()
        places = decode_batch(context, parts)
        if any(len(part.tokens) > 1 for part in parts) and not reader.counts:
            taken.append((begun, time.perf_counter()))
        return places

    monkeypatch.setattr("pigguf.serve.scheduler.decode_batch", timed)
    a, b = Heard(), Heard()
    with Context(model, options, prefiller=reader) as context, Scheduler(context) as scheduler:
        scheduler.submit([asked(text_tokens(16000), 4, "a")], a)
        scheduler.submit([asked([9, *text_tokens(16000)], 4, "b")], b)
        assert isinstance(a.end(), Finished)
    assert len(taken) > 2
    for (begun, ended), (later, _) in pairwise(taken):
        assert later - ended >= ended - begun


def test_who_goes_away_stops_it(served: tuple[Scheduler, Always]) -> None:
    scheduler, reader = served
    heard, after = Heard(), Heard()

    def deliver(index: int, event: RequestEvent) -> None:
        heard(index, event)
        if isinstance(event, PrefillProgress) and 0 < event.processed_tokens < 12000:
            ticket.cancel()

    ticket = scheduler.submit([long_request(16000)], deliver)
    assert isinstance(heard.end(), RequestFailed)
    assert reader.counts[0] < 15999
    scheduler.submit([asked([1, 2, 3], 8)], after)
    assert isinstance(after.end(), Finished)


def test_where_nobody_else_could_be_served_it_goes_on(model: Model) -> None:
    options = ContextOptions(length=WINDOW, batch=256)
    reader = Always(model, options)
    first, second = Heard(), Heard()
    with Context(model, options, prefiller=reader) as context, Scheduler(context) as scheduler:

        def deliver(index: int, event: RequestEvent) -> None:
            first(index, event)
            if (
                isinstance(event, PrefillProgress)
                and event.processed_tokens > 0
                and not second.events
                and not reader.counts
            ):
                scheduler.submit([asked([1, 2, 3], 4, "short")], second)

        scheduler.submit([long_request(9000)], deliver)
        assert isinstance(first.end(), Finished)
        assert isinstance(second.end(), Finished)
    assert reader.counts == [8999]
