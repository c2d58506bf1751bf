#!/usr/bin/env python3
"""Claim: layers on other machines cost a token the round trip to each of them and little else: decode
reaches 0.8 of the floor, with the same tokens as on one machine.

usage: benchmarks/workers.py MODEL.gguf [--quick]

The floor of a token is what it takes on one machine, for the layers compute one after the other, and for
each worker a round trip: tokens/s = 1 / (1 / alone + workers * 2 * delay). Bytes are few: of SmolLM2, 2.3 kB
go over each boundary (576 values in single precision) and 197 kB of logits come back (49152 values), 2 ms at
a gigabit a second. Predicted for 7 ms a token alone (140 tokens/s), with 0.4 ms a worker for the processes
between (the relay, the wire, the worker's front) and 0.4 ms for the logits:

| delay each way | 1 worker | 2 workers | 3 workers |
|---|---|---|---|
| 0 | 128 | 122 | 116 |
| 1 ms | 102 | 82 | 69 |
| 10 ms | 36 | 21 | 15 |

and of a prompt of 2048 tokens (in batches of 512, 1.2 MB over each boundary) nine tenths of the speed alone
without delay, three quarters with 10 ms.

Workers and client are hosts in network namespaces of this machine (tests/support/network.py: root, Linux), with
frames of 9000 bytes; a delay of 0 goes the same way. A machine is one core here: workers, of which one is at
work at a time, have this machine's first, as the client alone has; the client of workers and the wire have
the second. With more threads than one, those of workers that wait hold the core of the one that computes, or
they sleep and take 10 ms to come back, and nothing else is seen. The prompt is a novel's beginning, flash
attention is on, medians of three rounds. It takes about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from peers import machine

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.network import Network, missing  # noqa: E402
from support.worker_process import WorkerProcess  # noqa: E402

from pigguf.inference.engine import SamplingParams  # noqa: E402
from pigguf.inference.open_context import RunConfig, open_session  # noqa: E402

NOVEL = ROOT / "tests/data/persuasion-chapters-3-5.txt"
FRAME = 9000
COMPUTING, WAITING = 0, 1  # cores


@dataclass(frozen=True)
class Size:
    """How much is measured: tokens of the prompt, tokens drawn, rounds, and over what."""

    prompt: int
    drawn: int
    rounds: int
    workers: tuple[int, ...]
    delays: tuple[float, ...]


FULL = Size(2048, 64, 3, (1, 2, 3), (0.0, 0.001, 0.010))
QUICK = Size(256, 8, 1, (1, 3), (0.0, 0.010))


@dataclass(frozen=True)
class Measured:
    """One client: seconds to open the model, tokens a second, and what it drew."""

    opened: float
    prefill: float
    decode: float
    tokens: list[int]


def main(model: Path, size: Size) -> None:
    if (why := missing()) is not None:
        raise SystemExit(why)
    os.environ["PYTHONPATH"] = str(ROOT)  # of all children
    os.sched_setaffinity(0, {WAITING})
    print(machine())
    print(
        "| workers | delay each way, ms | opened in, s | prefill, tokens/s | of alone "
        "| decode, tokens/s | floor | of it | same tokens |\n|---|---|---|---|---|---|---|---|---|"
    )
    alone = measured(model, size, 0, 0.0)
    show(alone, alone, 0, 0.0)
    for delay in size.delays:
        for workers in size.workers:
            show(measured(model, size, workers, delay), alone, workers, delay)


def show(found: Measured, alone: Measured, workers: int, delay: float) -> None:
    floor = 1 / (1 / alone.decode + workers * 2 * delay)
    same = "yes" if found.tokens == alone.tokens else "no"
    print(
        f"| {workers or 'none'} | {delay * 1000:g} | {found.opened:.1f} | {found.prefill:.0f} "
        f"| {found.prefill / alone.prefill:.2f} | {found.decode:.1f} | {floor:.1f} "
        f"| {found.decode / floor:.2f} | {same} |",
        flush=True,
    )


def measured(model: Path, size: Size, workers: int, delay: float) -> Measured:
    """A client on host 0, and a worker on each of the others."""
    with ExitStack() as opened:
        network = opened.enter_context(Network(1 + workers, delay, mtu=FRAME))
        addresses = []
        for host in range(1, 1 + workers):
            address = f"{network.address(host)}:50052"
            worker = WorkerProcess(
                "--trust-network", address=address, on=[*network.on(host), *core(COMPUTING)]
            )
            opened.callback(worker.end)
            addresses.append(address)
        child = subprocess.run(
            [
                *network.on(0),
                *core(WAITING if workers else COMPUTING),
                sys.executable,
                __file__,
                str(model),
                "--child",
                json.dumps(vars(size)),
                *addresses,
            ],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return Measured(**json.loads(child.stdout))


def core(number: int) -> tuple[str, ...]:
    """What to put in front of a command for it to run on one core."""
    return ("taskset", "-c", str(number))


def child(model: Path, size: Size, workers: tuple[str, ...]) -> Measured:
    """What one client sees, in this process."""
    settings = RunConfig(
        size.prompt + size.drawn + 64,
        gpu_layers="all" if workers else 0,
        flash_attention=True,
        prefill="llama.cpp",
        prompt_cache=False,
        workers=workers,
    )
    begun = time.perf_counter()
    with open_session(model, settings) as session:
        opened = time.perf_counter() - begun
        prompt = session.context.model.tokenize(NOVEL.read_text(encoding="utf-8"))[: size.prompt]
        session.prefill(prompt[:64])  # warm
        prefill, decode = [], []
        for _ in range(size.rounds):
            session.truncate(0)
            begun = time.perf_counter()
            session.prefill(prompt)
            drawing = session.generate(SamplingParams(temperature=0), size.drawn + 1, lookup=False)
            tokens = [next(drawing)]
            read = time.perf_counter()
            tokens += drawing
            prefill.append(len(prompt) / (read - begun))
            decode.append((len(tokens) - 1) / (time.perf_counter() - read))
    return Measured(opened, statistics.median(prefill), statistics.median(decode), tokens)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--quick", action="store_true", help="whether it works, and no figures")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        size, *addresses = given.child
        print(json.dumps(vars(child(given.model, Size(**json.loads(size)), tuple(addresses)))))
    else:
        main(given.model, QUICK if given.quick else FULL)
