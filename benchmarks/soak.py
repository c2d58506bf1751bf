"""Soak test: run a server under clients that disconnect, stall, send too much or send garbage.

usage: python benchmarks/soak.py MODEL [--minutes N] [--clients N] [--workers N] [--seed N]

A real `pigguf serve` on loopback, without the prompt cache and with an f32 KV cache, so that answers can be
compared. Some prompts are long enough for the PyTorch prefill, where available, and clients disconnect during
it. With workers, one of them is killed every half minute and restarted; the server may then answer 503, and
no other error. Fails unless, at the end, all slots are free, memory and open files are at the level that they
had after a fifth of the time, and the questions of the beginning get the same answers at temperature 0. Linux
only.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.worker_process import WorkerProcess, started_workers

QUESTIONS = ("Name the capital of France.", "What is a pig?", "Count from one to ten.", "Write a short poem.")
WORDS = ("the", "river", "of", "a", "long", "day", "ran", "past", "mill", "while", "nobody", "spoke")
WINDOW = 6144
MOST_GROWTH = 1.1  # of resident memory, beside what allocators keep
MORE_BYTES = 32 << 20
SETTLED = 90.0  # seconds that slots may take to be free in the end


class Server:
    """A running server: its address, memory and open files."""

    def __init__(self, process: subprocess.Popen[str], host: str, port: int) -> None:
        self.process = process
        self.host = host
        self.port = port

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=120)

    def json(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        with closing(http.client.HTTPConnection(self.host, self.port, timeout=300)) as connection:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def resident(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        return int(found[1]) << 10

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@contextmanager
def serving(model: Path, workers: Sequence[str]) -> Iterator[Server]:
    options = ["--slots", "3", "--ctx", str(WINDOW), "--port", "0", "--no-prompt-cache"]
    exact = ["--cache-type-k", "f32", "--cache-type-v", "f32"]
    over = ["--workers", ",".join(workers)] if workers else []
    command = [sys.executable, "-m", "pigguf", "serve", str(model), *options, *exact, *over]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"is served at http://([\d.]+):(\d+)", line):
                break
        else:
            sys.exit("the server did not start")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        try:
            yield Server(process, found[1], int(found[2]))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


# ---- what clients do -----------------------------------------------------------------------------


def chat(question: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], "max_tokens": 24, **more}


def request_of(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n%s" % (len(data), data)


def text(chance: random.Random, words: int) -> str:
    return " ".join(chance.choices(WORDS, k=words))


def streamed(connection: socket.socket, question: str) -> str:
    """Read the status of a response whose body is complete."""
    connection.sendall(request_of(chat(question, stream=True)))
    received = b""
    while b"[DONE]" not in received and (part := connection.recv(1 << 16)):
        received += part
    return received[9:12].decode()


def asks(server: Server, chance: random.Random) -> str:
    status, _ = server.json("POST", "/v1/chat/completions", chat(chance.choice(QUESTIONS), temperature=1.5))
    return str(status)


def asks_for_json(server: Server, chance: random.Random) -> str:
    body = chat("Describe a pig.", response_format={"type": "json_object"}, n=2)
    return str(server.json("POST", "/v1/chat/completions", body)[0])


def streams(server: Server, chance: random.Random) -> str:
    with server.connect() as connection:
        return streamed(connection, text(chance, chance.randint(1, 900)))


def goes_away(server: Server, chance: random.Random) -> str:
    body = chat(text(chance, chance.choice((5, 1200))), stream=chance.random() < 0.5, max_tokens=1000)
    with server.connect() as connection:
        connection.sendall(request_of(body))
        connection.settimeout(chance.uniform(0, 3))
        with suppress(TimeoutError):
            connection.recv(chance.randint(1, 1 << 16))
        if chance.random() < 0.5:  # as where a process is killed on a machine that is then gone
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return "left"


def asks_about_much(server: Server, chance: random.Random) -> str:
    """Send a prompt long enough for the PyTorch prefill; half of the clients do not wait for the answer."""
    much = text(chance, chance.randint(2500, 5000))
    with server.connect() as connection:
        if chance.random() < 0.5:
            return streamed(connection, much)
        connection.sendall(request_of(chat(much, stream=True)))
        time.sleep(chance.uniform(0, 10))
    return "left"


def never_reads(server: Server, chance: random.Random) -> str:
    with server.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.sendall(request_of(chat("Go on.", stream=True, max_tokens=400, logprobs=True)))
        time.sleep(chance.uniform(1, 8))
    return "left"


def sends_too_much(server: Server, chance: random.Random) -> str:
    with suppress(ConnectionError):
        return str(server.json("POST", "/v1/chat/completions", chat("x" * 10_000_000))[0])
    return "hung up on"


def sends_more_than_fits(server: Server, chance: random.Random) -> str:
    return str(server.json("POST", "/v1/chat/completions", chat(text(chance, 2 * WINDOW)))[0])


def sends_nonsense(server: Server, chance: random.Random) -> str:
    whole = request_of(chat("x", logit_bias={"1": 2}))
    place = chance.randrange(len(whole))
    broken = whole[:place] + chance.randbytes(8) + whole[place + 8 :]
    with server.connect() as connection:
        connection.settimeout(2)
        with suppress(OSError):
            connection.sendall(chance.choice((broken, chance.randbytes(200), whole)))
            return connection.recv(12)[9:].decode("ascii", "replace") or "hung up on"
    return "no answer"


def dribbles(server: Server, chance: random.Random) -> str:
    whole = request_of(chat("x"))
    with server.connect() as connection, suppress(OSError):
        for at in range(chance.randrange(len(whole))):
            connection.sendall(whole[at : at + 1])
            time.sleep(0.02)
    return "left"


CLIENTS: tuple[Callable[[Server, random.Random], str], ...] = (
    *(asks, asks, asks_for_json, streams, streams, goes_away, goes_away, goes_away),
    *(asks_about_much, never_reads, sends_too_much, sends_more_than_fits, sends_nonsense, dribbles),
)


# ---- the run -------------------------------------------------------------------------------------


def answers(server: Server) -> list[str]:
    """Ask the questions one after the other, without other clients.

    No other prompt begins as they do: cached tokens are not computed again, and the remaining tokens would be
    computed in a smaller batch, which rounds differently.
    """
    found = []
    for question in QUESTIONS:
        body = {"prompt": question, "max_tokens": 24, "temperature": 0}
        status, answer = server.json("POST", "/v1/completions", body)
        assert status == 200, answer
        found.append(answer["choices"][0]["text"])
    return found


def wait_until_free(server: Server) -> bool:
    end = time.monotonic() + SETTLED
    while time.monotonic() < end:
        _, health = server.json("GET", "/health")
        if health["status"] == "ok" and health["running"] == health["waiting"] == 0:
            return True
        time.sleep(0.2)
    return False


def kill_workers(workers: list[WorkerProcess], seed: int, end: float, outcomes: Counter[str]) -> None:
    """Kill a worker every half minute, and restart it at its address after a while."""
    chance = random.Random(seed)
    while time.monotonic() < end - 60:
        time.sleep(chance.uniform(20, 40))
        place = chance.randrange(len(workers))
        if chance.random() < 0.3:  # stalls before it is killed
            workers[place].signal(signal.SIGSTOP)
            time.sleep(chance.uniform(0, 15))
        workers[place].end()
        time.sleep(chance.uniform(0, 10))
        workers[place] = WorkerProcess(address=workers[place].address)
        outcomes["a worker: killed, and back"] += 1


def misbehave(server: Server, seed: int, end: float, outcomes: Counter[str]) -> None:
    chance = random.Random(seed)
    while time.monotonic() < end:
        client = chance.choice(CLIENTS)
        try:
            outcome = client(server, chance)
        except OSError as error:
            outcome = type(error).__name__
        outcomes[f"{client.__name__}: {outcome}"] += 1


def for_a_while(
    server: Server,
    workers: list[WorkerProcess],
    minutes: float,
    clients: int,
    seed: int,
    outcomes: Counter[str],
) -> None:
    end = time.monotonic() + 60 * minutes
    threads = [
        threading.Thread(target=misbehave, args=(server, seed * 1000 + number, end, outcomes))
        for number in range(clients)
    ]
    if workers:
        threads.append(threading.Thread(target=kill_workers, args=(workers, seed, end, outcomes)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def measured(server: Server) -> tuple[int, int]:
    """Measure memory and open files when no client is connected and idle connections are closed."""
    time.sleep(12)
    return server.resident(), server.descriptors()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    outcomes: Counter[str] = Counter()
    with ExitStack() as opened:
        start = opened.enter_context(contextmanager(started_workers)())
        workers = [start() for _ in range(options.workers)]
        server = opened.enter_context(serving(options.model, [worker.address for worker in workers]))
        expected = answers(server)
        for_a_while(server, workers, options.minutes / 5, options.clients, options.seed, outcomes)
        is_free = wait_until_free(server)
        memory, files = measured(server)
        for_a_while(server, workers, options.minutes * 4 / 5, options.clients, options.seed + 1, outcomes)
        is_free = wait_until_free(server) and is_free
        memory_after, files_after = measured(server)
        found = answers(server)
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:7,}  {outcome}")
    different = [(a, b) for a, b in zip(expected, found, strict=True) if a != b]
    for before, after in different:
        print(f"{before!r} became {after!r}")
    failures = ": 5(?!03)|TimeoutError" if options.workers else ": 5|TimeoutError"
    failed = {outcome for outcome in outcomes if re.search(failures, outcome)}
    verdicts = {
        f"answers that are others than in the beginning: {len(different)}": not different,
        "no slot is taken": is_free,
        f"memory {memory >> 20} -> {memory_after >> 20} MiB": memory_after
        <= memory * MOST_GROWTH + MORE_BYTES,
        f"open files {files} -> {files_after}": files_after <= files + 2,
        f"failures of the server: {', '.join(sorted(failed)) or 'none'}": not failed,
    }
    for verdict, is_good in verdicts.items():
        print("ok    " if is_good else "FAILED", verdict)
    return 0 if all(verdicts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
