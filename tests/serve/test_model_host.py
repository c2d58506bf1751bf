"""A server whose workers or files fail: what clients and /health get, and how it recovers."""

from __future__ import annotations

import gc
import json
import os
import queue
import shutil
import signal
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
from support.running_server import RunningServer, get, post, running_server, wait_until
from support.tiny_chat import write_chat_model
from support.worker_process import WorkerProcess, started_workers

from pigguf.inference.run_config import RunConfig
from pigguf.serve.events import RequestEvent, RequestFailed
from pigguf.serve.generation_request import GenerationRequest
from pigguf.serve.model_host import ModelHost

LATEST = 10.0  # seconds until a failure is reported
EXACT = ("--no-prompt-cache", "--cache-type-k", "f32", "--cache-type-v", "f32")

StartWorker = Callable[..., WorkerProcess]
Start = Callable[..., RunningServer]


@pytest.fixture
def worker() -> Iterator[StartWorker]:
    yield from started_workers()


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as servers:
        yield lambda *arguments: servers.enter_context(running_server(*arguments, *EXACT))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_chat_model(tmp_path / "tiny.gguf", 8192)


def health(served: RunningServer) -> tuple[int, dict[str, Any]]:
    status, body, _ = post(f"{served.url}/health", None)
    return status, body


def ask(served: RunningServer, max_tokens: int = 40) -> tuple[int, Any, Any]:
    body = {"prompt": "Once", "max_tokens": max_tokens, "temperature": 0}
    return post(f"{served.url}/v1/completions", body)


def text(served: RunningServer) -> str:
    status, body, _ = ask(served)
    assert status == 200, body
    return str(body["choices"][0]["text"])


def endless(served: RunningServer) -> Iterator[Any]:
    """Return a stream that does not end by itself, after its first chunk."""
    stream = served.client().completions.create(
        model="tiny", prompt="Once", max_tokens=8000, n=8, temperature=0, stream=True
    )
    chunks = iter(stream)
    next(chunks)
    return chunks


FAILURES = [(signal.SIGKILL, "disconnected"), (signal.SIGSTOP, "did not respond")]


@pytest.mark.parametrize(("number", "what"), FAILURES, ids=["killed", "stopped"])
def test_a_worker_that_fails_and_returns(
    worker: StartWorker, start: Start, tiny: Path, number: int, what: str
) -> None:
    first, other = worker(), worker()
    served = start(tiny, "--workers", f"{first.address},{other.address}", "--slots", "2")
    expected = text(served)
    running = endless(served)
    started = time.monotonic()
    other.signal(number)
    with pytest.raises(openai.APIError, match=f"the worker {other.address} {what}") as failed:
        list(running)
    assert failed.value.code == "unavailable"
    wait_until(lambda: health(served)[0] == 503)
    assert time.monotonic() - started < LATEST
    assert health(served)[1]["status"] == "unavailable"
    assert other.address in health(served)[1]["reason"]
    status, body, headers = ask(served)
    assert (status, body["error"]["code"]) == (503, "unavailable")
    assert int(headers["Retry-After"]) >= 1
    assert "pigguf_available 0.0" in get(f"{served.url}/metrics")
    if number == signal.SIGSTOP:
        other.signal(signal.SIGCONT)
    else:
        other.end()
        worker(address=other.address)
    wait_until(lambda: health(served)[0] == 200)
    assert text(served) == expected
    assert "the model is loaded again" in "".join(served.stderr_lines)


def test_a_worker_that_fails_while_the_server_is_idle(worker: StartWorker, start: Start, tiny: Path) -> None:
    lost = worker()
    served = start(tiny, "--workers", lost.address)
    assert health(served)[0] == 200
    started = time.monotonic()
    lost.signal(signal.SIGKILL)
    wait_until(lambda: health(served)[0] == 503)
    assert time.monotonic() - started < LATEST
    served.process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    assert served.wait() == -signal.SIGTERM
    assert time.monotonic() - started < LATEST


def test_a_failed_model_is_freed_at_once(worker: StartWorker, tiny: Path) -> None:
    lost = worker()
    ends: queue.SimpleQueue[RequestEvent] = queue.SimpleQueue()
    gc.collect()
    gc.disable()  # which would free it some time later
    try:
        with ModelHost(
            tiny, RunConfig(prompt_cache=False, workers=(lost.address,), gpu_layers="all")
        ) as host:
            for _ in range(2):
                with host.borrow_context() as context:
                    former = [weakref.ref(o) for o in (context, context.model, context.model.file)]
                del context
                host.scheduler.submit([GenerationRequest([1, 5, 6])], lambda _, event: ends.put(event))
                lost.end()
                while not isinstance(ends.get(timeout=LATEST), RequestFailed):
                    pass
                wait_until(lambda: host.failure is not None)
                wait_until(partial(_are_freed, former), LATEST)
                lost = worker(address=lost.address)
                wait_until(lambda: host.failure is None)
    finally:
        gc.enable()


def _are_freed(references: list[weakref.ref[Any]]) -> bool:
    return all(reference() is None for reference in references)


def test_a_replaced_file_stays_in_use(
    worker: StartWorker, start: Start, tiny: Path, smollm2_gguf: Path
) -> None:
    lost = worker()
    alone, spread = start(tiny), start(tiny, "--workers", lost.address)
    expected = text(alone)
    shutil.copy(smollm2_gguf, tiny.with_name("new.gguf"))
    os.replace(tiny.with_name("new.gguf"), tiny)
    time.sleep(2)
    assert text(alone) == text(spread) == expected
    assert health(alone)[0] == 200
    lost.end()
    wait_until(lambda: health(spread)[0] == 503)
    worker(address=lost.address)
    wait_until(lambda: "was replaced by another file" in health(spread)[1]["reason"])


@pytest.mark.parametrize("cut", [True, False], ids=["truncated", "overwritten"])
def test_a_file_that_is_written_to_is_not_used_any_more(start: Start, tiny: Path, cut: bool) -> None:
    served = start(tiny)
    expected, whole, was = text(served), tiny.read_bytes(), tiny.stat()
    running = endless(served) if not cut else iter(())
    with open(tiny, "r+b") as file:
        if cut:
            file.truncate(1000)
        else:
            file.seek(-1000, os.SEEK_END)
            file.write(bytes(1000))
    if cut:
        status, body, _ = ask(served)
        assert status == 503
        assert "was written to while it was in use" in body["error"]["message"]
    else:
        with pytest.raises(openai.APIError, match="was written to while it was in use"):
            list(running)
    wait_until(lambda: health(served)[0] == 503)
    assert ask(served)[0] == 503
    assert json.loads(get(f"{served.url}/v1/models"))["data"][0]["id"] == "tiny"
    tiny.write_bytes(whole)
    os.utime(tiny, ns=(was.st_atime_ns, was.st_mtime_ns))  # as before: the model is loaded again
    wait_until(lambda: health(served)[0] == 200)
    assert text(served) == expected
