"""Workers in processes of their own: the same tokens as on one machine, and errors for what can fail."""

from __future__ import annotations

import http.server
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from support.prompt_cache_helpers import write_model
from support.tiny_gguf import text_tokens, write_deep
from support.worker_process import WorkerProcess, started_workers

from pigguf.errors import DoesNotFit, EngineError, UsageError, WorkerLost
from pigguf.inference.engine import Context, ContextOptions, Model, SamplingParams, Session
from pigguf.inference.local_model import open_model
from pigguf.inference.memory_planning import FreeMemory, fit_to_memory, measure_free_memory, plan
from pigguf.inference.open_context import open_session
from pigguf.inference.rpc.client import Workers, connect, connect_or_none
from pigguf.inference.run_config import RunConfig
from pigguf.llama_cpp_internals.rpc_protocol import (
    GRAPH_COMMANDS,
    HELLO_DATA,
    VERSION,
    RpcCommand,
    RpcConnection,
    parse_host_port,
)
from pigguf.progress import SilentProgress

Start = Callable[..., WorkerProcess]

OPTIONS = ContextOptions(length=1024, flash_attention=True)
SOON = 10.0  # seconds within which a failure must be reported
LAYERS = 6


@pytest.fixture
def start() -> Iterator[Start]:
    yield from started_workers()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny model with a layer or two for each of three workers."""
    return write_deep(tmp_path_factory.mktemp("workers") / "tiny.gguf", LAYERS)


@contextmanager
def running(path: Path, workers: Workers | None, options: ContextOptions = OPTIONS) -> Iterator[Session]:
    with (
        Model.open(path, gpu_layers="all" if workers else 0, workers=workers) as model,
        Context(model, options) as context,
        context.sequence() as session,
    ):
        yield session


def greedy(session: Session, prompt: list[int], count: int) -> list[int]:
    session.prefill(prompt)
    return list(session.generate(SamplingParams(temperature=0), max_tokens=count))


def addresses(workers: list[WorkerProcess]) -> list[str]:
    return [worker.address for worker in workers]


# ---- the same as on one machine ----------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_same_tokens_as_on_one_machine(start: Start, tiny: Path, count: int) -> None:
    prompt = text_tokens(300)
    with running(tiny, None) as session:
        expected = greedy(session, prompt, 64)
    with connect(addresses([start() for _ in range(count)])) as workers, running(tiny, workers) as session:
        assert session.context.model.gpu_layers == LAYERS + 1
        assert greedy(session, prompt, 64) == expected


def test_a_real_model_s_answer_is_the_same(start: Start, smollm2_gguf: Path) -> None:
    answers = []
    three = [start() for _ in range(3)]
    for count in (0, 1, 2, 3):
        named = tuple(addresses(three[:count]))
        settings = RunConfig(
            1024, prefill="llama.cpp", flash_attention=True, prompt_cache=False, workers=named
        )
        with open_session(smollm2_gguf, settings) as session:
            prompt = session.context.model.tokenize("It is a truth universally acknowledged, that")
            answers.append(greedy(session, prompt, 32))
    assert answers[1:] == answers[:1] * 3


def test_an_app_chooses_the_split(start: Start, smollm2_gguf: Path) -> None:
    two = [start(), start()]
    before = [free_of(worker) for worker in two]
    named = addresses(two)
    with open_model(smollm2_gguf, 512, gpu_layers="all", workers=named, split=[0, 1]) as model:
        text = "".join(model.generate("It is a truth", SamplingParams(temperature=0), max_tokens=8))
        taken = [most - free_of(worker) for most, worker in zip(before, two, strict=True)]
    with open_model(smollm2_gguf, 512, gpu_layers=0, flash_attention=True) as model:
        assert text == "".join(model.generate("It is a truth", SamplingParams(temperature=0), max_tokens=8))
    assert taken[0] < 10 << 20 < taken[1]


def test_models_are_always_loaded_by_the_same_thread(start: Start, tiny: Path) -> None:
    """Use one thread, because each new one would keep memory of its own."""
    for _ in range(3):
        with connect([start().address]) as workers, running(tiny, workers):
            pass
    assert sum(thread.name.startswith("pigguf-load") for thread in threading.enumerate()) == 1


def test_a_state_is_imported_to_workers_and_exported(start: Start, tiny: Path) -> None:
    prompt = text_tokens(200)
    with running(tiny, None) as session:
        session.prefill(prompt)
        state = session.context.export_state(0)
    with connect([start().address, start().address]) as workers, running(tiny, workers) as session:
        session.context.import_state(0, state)
        assert session.context.export_state(0) == state
        assert session.context.n_past(0) == len(prompt)


@pytest.mark.parametrize("cached_by", ["workers", "one machine"])
def test_a_cached_prompt_is_restored_with_and_without_workers(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached_by: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = write_model(tmp_path / "tiny.gguf")
    spread = RunConfig(2048, gpu_layers="all", workers=(start().address, start().address))
    alone = RunConfig(2048, gpu_layers=0, prefill="llama.cpp", flash_attention=False)  # V is transposed
    cached, generated = [], []
    for settings in (spread, alone) if cached_by == "workers" else (alone, spread):
        with open_session(path, settings) as session:
            cached.append(session.set_prompt(text_tokens(1200)))
            generated.append(list(session.generate(SamplingParams(temperature=0), max_tokens=8)))
    assert cached == [0, 1200]
    assert generated[0] == generated[1]


def test_layers_are_placed_by_the_split(start: Start, tiny: Path) -> None:
    with connect([start().address, start().address], split=(5, 2)) as workers:
        planned = plan(tiny, OPTIONS, gpu_layers="all", workers=workers)
    _, first, second = planned.devices
    assert (first.name, second.name) == tuple(device.name for device in workers.devices)
    assert first.sizes.cache == 5 * second.sizes.cache  # of six layers; the output is the seventh


def test_a_plan_is_what_the_workers_then_allocate(start: Start, smollm2_gguf: Path) -> None:
    three = [start("--memory", "1G") for _ in range(3)]
    with connect(addresses(three)) as workers:
        planned = plan(smollm2_gguf, replace(OPTIONS, length=8192), gpu_layers="all", workers=workers)
        assert [device.name for device in planned.devices[1:]] == addresses(three)
        with running(smollm2_gguf, workers, planned.options):
            for device, worker in zip(planned.devices[1:], three, strict=True):
                taken = (1 << 30) - free_of(worker)
                assert device.total == pytest.approx(taken, rel=0.05)


def free_of(worker: WorkerProcess) -> int:
    """Return the free memory that a worker reports, to any client at any time."""
    connection = socket.create_connection(parse_host_port(worker.address), timeout=SOON)
    with closing(RpcConnection(connection)) as peer:
        peer.request(RpcCommand.HELLO, HELLO_DATA)
        free, _ = struct.unpack("<QQ", peer.request(RpcCommand.GET_DEVICE_MEMORY, struct.pack("<I", 0)))
    return int(free)


# ---- memory ------------------------------------------------------------------------------------------


def test_a_model_too_large_for_two_workers_runs_on_three(start: Start, smollm2_gguf: Path) -> None:
    """Run weights of 90 MiB and a KV cache of 180 MiB on workers that lend at most 250 MiB each."""
    lent = 250 << 20
    three = [start("--memory", "250M") for _ in range(3)]
    options = replace(OPTIONS, length=8192)
    for count in (1, 2):
        with connect(addresses(three[:count])) as workers:
            planned = plan(smollm2_gguf, options, gpu_layers="all", workers=workers)
            with pytest.raises(DoesNotFit, match=three[count - 1].address):
                planned.require_fit()
            if count == 1:  # two lack a little of the plan's reserve
                with pytest.raises(EngineError), running(smollm2_gguf, workers, planned.options):
                    pass  # the worker enforces its limit without a plan
    with running(smollm2_gguf, None, options) as session:
        prompt = session.context.model.tokenize("It is a truth universally acknowledged, that")
        expected = greedy(session, prompt, 16)
    with connect(addresses(three)) as workers:
        planned = fit_to_memory(smollm2_gguf, options, gpu_layers="all", workers=workers)
        host, *others = planned.devices
        assert sum(device.sizes.weights + device.sizes.cache for device in others) > lent
        assert (host.sizes.weights, host.sizes.cache) == (0, 0)
        assert [number for device in others for number in device.sizes.layers] == [*range(31)]
        with running(smollm2_gguf, workers, planned.options) as session:
            for device, worker in zip(others, three, strict=True):
                assert device.sizes.weights + device.sizes.cache < lent - free_of(worker) <= lent
            assert greedy(session, prompt, 16) == expected


def test_memory_is_freed_when_a_client_disconnects(start: Start, smollm2_gguf: Path) -> None:
    worker = start("--memory", "1G")
    for _ in range(2):
        with connect([worker.address]) as workers, running(smollm2_gguf, workers):
            assert free_of(worker) < (1 << 30) - (80 << 20)
        wait_until(lambda: free_of(worker) == 1 << 30)


def wait_until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + SOON
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_free_memory_is_that_of_the_workers_instead_of_gpus(start: Start) -> None:
    worker = start("--memory", "64M")
    with connect([worker.address]) as workers:
        cached: FreeMemory = measure_free_memory(workers)
    assert [(gpu.name, gpu.memory_free) for gpu in cached.gpus] == [(worker.address, 64 << 20)]


# ---- workers that fail -------------------------------------------------------------------------------


class Failure(NamedTuple):
    number: int
    words: str


FAILURES = [Failure(signal.SIGKILL, "disconnected"), Failure(signal.SIGSTOP, "did not respond")]


@pytest.mark.parametrize("failure", FAILURES, ids=["killed", "stopped"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_worker_that_fails_during_an_answer(
    start: Start, smollm2_gguf: Path, failure: Failure, which: int
) -> None:
    two = [start(), start()]
    with connect(addresses(two)) as workers, running(smollm2_gguf, workers) as session:
        session.prefill(session.context.model.tokenize("Once upon a time"))
        generated = 0
        start_time = time.monotonic()
        with pytest.raises(WorkerLost, match=f"{two[which].address} .*{failure.words}"):
            for _ in session.generate(SamplingParams(temperature=0), max_tokens=1000):
                generated += 1
                if generated == 5:
                    two[which].signal(failure.number)
                    start_time = time.monotonic()
        assert generated >= 5
        assert time.monotonic() - start_time < SOON
        with pytest.raises(WorkerLost):
            session.prefill([1])
        with pytest.raises(WorkerLost):
            session.context.export_state(0)
    assert time.monotonic() - start_time < SOON


@pytest.mark.parametrize("failure", FAILURES, ids=["killed", "stopped"])
def test_a_worker_that_fails_during_prefill(
    start: Start, smollm2_gguf: Path, novel: str, failure: Failure
) -> None:
    two = [start(), start()]
    options = replace(OPTIONS, length=8192)
    with connect(addresses(two)) as workers, running(smollm2_gguf, workers, options) as session:
        tokens = session.context.model.tokenize(novel)[:8000]
        fails = threading.Timer(1.5, two[1].signal, [failure.number])
        fails.start()
        start_time = time.monotonic()
        with pytest.raises(WorkerLost, match=failure.words):
            session.prefill(tokens)
        assert time.monotonic() - start_time < 1.5 + SOON


def test_a_worker_that_fails_between_requests(start: Start, tiny: Path, tmp_path: Path) -> None:
    worker = start()
    with connect([worker.address]) as workers, running(tiny, workers) as session:
        greedy(session, text_tokens(20), 3)
        worker.signal(signal.SIGKILL)
        start_time = time.monotonic()
        with pytest.raises(WorkerLost, match="disconnected"):
            greedy(session, text_tokens(20), 3)
        with pytest.raises(WorkerLost):  # what is saved to disk must be what was computed
            session.context.save_state(0, str(tmp_path / "state"), session.tokens)
    assert time.monotonic() - start_time < SOON


@pytest.mark.parametrize("failure", FAILURES, ids=["killed", "stopped"])
def test_a_worker_that_fails_while_weights_arrive(start: Start, smollm2_gguf: Path, failure: Failure) -> None:
    two = [start(), start()]
    with connect(addresses(two)) as workers:
        two[1].signal(failure.number)
        start_time = time.monotonic()
        with pytest.raises(WorkerLost, match=two[1].address), running(smollm2_gguf, workers):
            pass
    assert time.monotonic() - start_time < SOON


class Partway(SilentProgress):
    """Call a function once, when a good part of the weights is loaded."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._do: Callable[[], None] | None = do
        self._percent = 0.0

    def advance(self, amount: float) -> None:
        self._percent += amount
        if self._percent > 30 and self._do is not None:
            self._do, do = None, self._do
            do()


def test_a_worker_that_dies_during_a_load_leaves_nothing_open(start: Start, smollm2_gguf: Path) -> None:
    two = [start("--memory", "1G"), start("--memory", "1G")]
    settings = RunConfig(1024, prompt_cache=False, workers=tuple(addresses(two)))
    dying = Partway(lambda: two[1].signal(signal.SIGKILL))
    with (
        pytest.raises(WorkerLost, match=f"{two[1].address} disconnected"),
        open_session(smollm2_gguf, settings, dying),
    ):
        pass
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("heartbeat of")]
    wait_until(lambda: free_of(two[0]) == 1 << 30)
    connect([two[0].address]).close()


def test_ctrl_c_does_not_wait_for_a_weight_that_is_being_sent(start: Start, smollm2_gguf: Path) -> None:
    worker = start()
    pressed = 0.0

    def press() -> None:
        nonlocal pressed
        pressed = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)

    def stall() -> None:
        worker.signal(signal.SIGSTOP)
        threading.Timer(0.5, press).start()

    with connect([worker.address]) as workers, pytest.raises(KeyboardInterrupt):
        Model.open(smollm2_gguf, gpu_layers="all", workers=workers, progress=Partway(stall))
    assert time.monotonic() - pressed < 2  # and a stall is reported after four


def test_a_worker_that_comes_back_serves_again(start: Start, tiny: Path) -> None:
    first, prompt = start(), text_tokens(50)
    with connect([first.address]) as workers, running(tiny, workers) as session:
        expected = greedy(session, prompt, 10)
        first.end()
        with pytest.raises(WorkerLost):
            greedy(session, prompt, 10)
    with pytest.raises(WorkerLost, match="cannot be reached"):
        connect([first.address])
    start(address=first.address)
    with connect([first.address]) as workers, running(tiny, workers) as session:
        assert greedy(session, prompt, 10) == expected


def test_a_worker_that_computes_for_long_is_not_lost(
    start: Start, smollm2_gguf: Path, novel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compute a batch that takes several times as long as the heartbeat's timeout."""
    monkeypatch.setattr("pigguf.inference.rpc.worker_connection.TIMEOUT", 0.5)
    monkeypatch.setattr("pigguf.inference.rpc.worker_connection.HEARTBEAT_INTERVAL", 0.1)
    options = ContextOptions(length=4096, batch=2048)
    with connect([start().address]) as workers, running(smollm2_gguf, workers, options) as session:
        tokens = session.context.model.tokenize(novel)[:2048]
        start_time = time.monotonic()
        session.prefill(tokens)
        assert time.monotonic() - start_time > 2 * 0.5


def test_a_prompts_batches_are_not_sent_ahead(
    start: Start, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Send each batch after the last is computed, for progress and Ctrl-C to be accurate."""
    sent: list[RpcCommand] = []
    send = RpcConnection.send

    def noted(self: RpcConnection, command: RpcCommand, length: int, data: bytes) -> None:
        sent.append(command)
        send(self, command, length, data)

    with connect([start().address]) as workers, running(tiny, workers, replace(OPTIONS, batch=64)) as session:
        monkeypatch.setattr(RpcConnection, "send", noted)
        session.prefill(text_tokens(640))
    waits = [
        command in GRAPH_COMMANDS
        for command in sent
        if command in (*GRAPH_COMMANDS, RpcCommand.GET_ALIGNMENT, RpcCommand.GET_TENSOR)
    ]
    assert sum(waits) >= 10
    assert (True, True) not in pairwise(waits)


# ---- what is not a worker ----------------------------------------------------------------------------


def refusal(*named: str) -> str:
    start_time = time.monotonic()
    with pytest.raises(WorkerLost) as refused:
        connect(named)
    assert time.monotonic() - start_time < SOON
    assert refused.value.hint
    return refused.value.message


def test_no_program_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    assert refusal(address) == f"the worker {address} cannot be reached: Connection refused"


def test_an_unknown_host() -> None:
    assert "cannot be reached" in refusal("no-such-host.invalid:50052")


def test_a_web_server() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_address[1]}"
        assert address in refusal(address)
        server.shutdown()


def test_a_stopped_worker(start: Start) -> None:
    worker = start()
    worker.signal(signal.SIGSTOP)
    assert f"{worker.address} does not answer" in refusal(worker.address)


def test_a_tunnel_without_a_worker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept()[0].close()).start()
        assert "closed the connection" in refusal(f"127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize("version", [(6, 1, 0), (7, 1, 0), (7, 0, 1)])
def test_another_version(version: tuple[int, int, int]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with closing(RpcConnection(server.accept()[0])) as peer:
                request = peer.read_request()
                assert request is not None
                peer.read_data(request[1])
                peer.respond(bytes((*version, 0)) + HELLO_DATA)

        answering = threading.Thread(target=answer)
        answering.start()
        message = refusal(f"127.0.0.1:{server.getsockname()[1]}")
        answering.join()
    assert f"speaks version {'.'.join(map(str, version))}" in message
    assert ".".join(map(str, VERSION)) in message


def test_the_version_is_the_library_s_own(start: Start) -> None:
    connection = socket.create_connection(parse_host_port(start().address))
    with closing(RpcConnection(connection)) as peer:
        assert tuple(peer.request(RpcCommand.HELLO, HELLO_DATA)[:3]) == VERSION


def test_a_second_client_gets_an_error_and_the_first_one_continues(start: Start, tiny: Path) -> None:
    worker, prompt = start(), text_tokens(50)
    with connect([worker.address]) as workers, running(tiny, workers) as session:
        session.prefill(prompt)
        assert refusal(worker.address) == f"the worker {worker.address} serves another client"
        assert len(list(session.generate(SamplingParams(temperature=0), max_tokens=5))) == 5
    connect([worker.address]).close()


def test_a_worker_that_computes_for_a_disconnected_client_is_not_free_yet(
    start: Start, smollm2_gguf: Path
) -> None:
    worker = start(on=("taskset", "--cpu-list", str(min(os.sched_getaffinity(0)))))
    options = ContextOptions(length=8192, batch=4096)
    with connect([worker.address]) as workers, running(smollm2_gguf, workers, options) as session:
        threading.Timer(1.0, workers.close).start()
        with pytest.raises(WorkerLost, match="was disconnected by this client"):
            session.prefill([1] * 8192)
    assert refusal(worker.address) == f"the worker {worker.address} serves another client"


def test_a_client_that_sends_garbage_does_not_end_the_worker(start: Start) -> None:
    worker = start()
    short = [bytes([command, size]) + bytes(7 + size) for command in (0, 7, 8, 11) for size in (0, 3)]
    for garbage in (
        b"GET / HTTP/1.1\r\n\r\n", b"\x0e" + b"\xff" * 40, b"\x06" + bytes(8), b"\xff" * 100, *short,
    ):  # fmt: skip
        with socket.create_connection(parse_host_port(worker.address), timeout=SOON) as connection:
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    connect([worker.address]).close()
    worker.signal(signal.SIGINT)
    assert worker.child.communicate(timeout=SOON)[1] == "\ninterrupted\n"


def test_more_connections_than_it_can_have_do_not_end_the_worker(start: Start) -> None:
    worker = start(on=("sh", "-c", 'ulimit -n 64; exec "$0" "$@"'))
    with ExitStack() as opened, suppress(TimeoutError):
        for _ in range(100):
            opened.enter_context(socket.create_connection(parse_host_port(worker.address), timeout=0.5))
            time.sleep(0.01)  # its queue is short
    connect([worker.address]).close()


# ---- wrong usage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["", "host", "host:", ":50052", "host:port", "host:99999", "::1:50052"])
def test_a_wrong_address(address: str) -> None:
    with pytest.raises(UsageError, match="is not HOST:PORT"):
        connect([address])


def test_a_worker_that_is_given_twice(start: Start) -> None:
    worker = start()
    with pytest.raises(UsageError, match="twice"):
        connect([worker.address, worker.address])


@pytest.mark.parametrize("split", [(1, 1), (-1,), (0,), (float("nan"),), (float("inf"),)])
def test_a_split_that_does_not_match(start: Start, split: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="split"):
        connect([start().address], split)


def test_a_split_without_workers() -> None:
    with pytest.raises(UsageError, match="without workers"), connect_or_none((), (1, 1)):
        pass
