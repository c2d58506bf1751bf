"""Text for asyncio: the loop stays free, a slow consumer slows the engine, a cancelled task stops it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

import pigguf
from pigguf.errors import ContextOverflow, TokenizerError, UsageError
from pigguf.inference.async_stream import stream_in_thread
from pigguf.inference.engine import SamplingParams
from pigguf.inference.local_model import LocalModel
from pigguf.progress import SilentProgress

GREEDY = SamplingParams(temperature=0)
QUESTION = [
    {"role": "system", "content": "You know geography."},
    {"role": "user", "content": "What is the capital of France?"},
]


@pytest.fixture(scope="module")
def model(smollm2_gguf: Path) -> Iterator[LocalModel]:
    with pigguf.open_model(smollm2_gguf, ctx=4096) as model:
        yield model


def test_the_text_is_that_of_the_plain_iterator(model: LocalModel) -> None:
    async def ask() -> tuple[list[str], list[str]]:
        chatted = [text async for text in model.achat(QUESTION, GREEDY, max_tokens=20)]
        generated = [
            text async for text in model.agenerate("One, two, three,", GREEDY, max_tokens=12, stop=["six"])
        ]
        return chatted, generated

    chatted, generated = asyncio.run(ask())
    assert model.stop_reason == "stop"
    assert chatted == list(model.chat(QUESTION, GREEDY, max_tokens=20))
    assert generated == list(model.generate("One, two, three,", GREEDY, max_tokens=12, stop=["six"]))
    assert len(chatted) > 2


def test_the_loop_goes_on_meanwhile(model: LocalModel, novel: str) -> None:
    """A prompt takes seconds; the loop must run many times in each."""
    prompt = model.tokenize(novel)[:600]

    async def ask() -> tuple[int, float]:
        longest, rounds, done = 0.0, 0, asyncio.Event()

        async def tick() -> None:
            nonlocal longest, rounds
            while not done.is_set():
                start = time.monotonic()
                await asyncio.sleep(0.005)
                longest, rounds = max(longest, time.monotonic() - start), rounds + 1

        ticking = asyncio.create_task(tick())
        start = time.monotonic()
        assert [text async for text in model.agenerate(prompt, GREEDY, max_tokens=4)]
        took = time.monotonic() - start
        done.set()
        await ticking
        return rounds, longest / took

    rounds, share = asyncio.run(ask())
    assert rounds > 20
    assert share < 0.5


class FirstBatch(SilentProgress):
    """Set an event when the first batch of a prompt is done."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def advance(self, amount: float) -> None:
        self.event.set()


def test_a_cancelled_task_stops_a_prompt_and_frees_the_session(model: LocalModel, novel: str) -> None:
    prompt = model.tokenize("The end. " + novel)[:4000]
    first_batch = FirstBatch()

    async def consume() -> None:
        async for _ in model.agenerate(prompt, GREEDY, progress=first_batch):
            raise AssertionError("there must be no text yet")

    async def ask() -> str:
        task = asyncio.create_task(consume())
        await asyncio.to_thread(first_batch.event.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert 0 < model._session.n_past < len(prompt), "it was computed to its end"
        return "".join([text async for text in model.achat(QUESTION, GREEDY)])

    assert "Paris" in asyncio.run(ask())


def test_a_task_cancelled_at_once_computes_nothing(model: LocalModel) -> None:
    async def ask() -> str:
        for wait in (0.0, 0.001, 0.01, 0.05):
            task = asyncio.create_task(anext(model.agenerate("Once " * 2000, GREEDY)))  # type: ignore[arg-type]
            await asyncio.sleep(wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert model._session.n_past < 2000
        return "".join([text async for text in model.achat(QUESTION, GREEDY)])

    assert "Paris" in asyncio.run(ask())


def test_a_timeout_stops_an_answer(model: LocalModel) -> None:
    pieces: list[str] = []

    async def consume() -> None:
        async for text in model.agenerate(
            "Once upon a time", SamplingParams(temperature=0, repeat_penalty=1.3)
        ):
            pieces.append(text)

    async def ask() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(consume(), 0.3)

    asyncio.run(ask())
    assert model.stop_reason == "interrupted"
    length = model._session.n_past
    time.sleep(0.2)
    assert model._session.n_past == length < 4096


def test_leaving_the_loop_ends_the_text(model: LocalModel) -> None:
    async def ask() -> None:
        async with aclosing(model.agenerate("Once upon a time", GREEDY)) as texts:
            async for _ in texts:
                break
        assert model.stop_reason == "interrupted"

    asyncio.run(ask())


def test_errors_arrive(model: LocalModel) -> None:
    async def first(texts: object) -> None:
        await anext(texts)  # type: ignore[call-overload]

    for texts, kind in (
        (lambda: model.agenerate("word " * 5000), ContextOverflow),
        (lambda: model.agenerate(""), UsageError),
        (lambda: model.agenerate("a", stop="a"), UsageError),
        (lambda: model.agenerate("a", json_schema=False), UsageError),
        (lambda: model.achat([{"role": "user", "content": "a"}, {"role": "?"}]), (TokenizerError, KeyError)),
    ):
        with pytest.raises(kind):
            asyncio.run(first(texts()))


def test_nothing_is_computed_ahead_of_the_consumer() -> None:
    computed: list[int] = []

    def count() -> Generator[str, None, None]:
        for number in range(100):
            computed.append(number)
            yield str(number)

    async def consume() -> None:
        async for text in stream_in_thread(count, lambda: None):
            await asyncio.sleep(0.002)
            assert computed[-1] == int(text)

    asyncio.run(consume())
    assert len(computed) == 100


def test_no_thread_is_left_behind(model: LocalModel) -> None:
    before = set(threading.enumerate())

    async def ask() -> None:
        for _ in range(3):
            assert [text async for text in model.agenerate("One,", GREEDY, max_tokens=2)]

    asyncio.run(ask())
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and set(threading.enumerate()) - before:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before
