#!/usr/bin/env python3
"""Claim: with layers on other machines, decode reaches 0.8 of the theoretical rate, with the same tokens.

A token costs one round trip for each machine and little else.

usage: benchmarks/workers.py MODEL.gguf [--quick]

The theoretical time of a token is its time on one machine (layers are computed one after the other) plus one
round trip for each worker: tokens/s = 1 / (1 / alone + workers * 2 * delay). Little data is sent: for
SmolLM2, 2.3 kB cross each boundary (576 float32 values) and 197 kB of logits come back (49152 values), 2 ms
at 1 Gbit/s. Predicted for 7 ms a token alone (140 tokens/s), with 0.4 ms a worker for the processes in
between (relay, network, the worker's proxy) and 0.4 ms for the logits:

| delay each way | 1 worker | 2 workers | 3 workers |
|---|---|---|---|
| 0 | 128 | 122 | 116 |
| 1 ms | 102 | 82 | 69 |
| 10 ms | 36 | 21 | 15 |

and for a prompt of 2048 tokens (in batches of 512, 1.2 MB over each boundary) nine tenths of the speed on one
machine without delay, three quarters with 10 ms.

Workers and client are hosts in network namespaces of this machine (tests/support/network.py: root, Linux),
with frames of 9000 bytes; a delay of 0 uses the same network. Each machine has one core here: the workers,
one of which computes at a time, share this machine's first core, which the client also has when it runs
alone; the client of workers and the network have the second. With more threads, waiting workers would spin on
the core of the computing one, or sleep and take 10 ms to wake up, which would hide everything else. The
prompt is the beginning of a novel, flash attention is on, medians of three rounds. It takes about ten minutes
on two cores.
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
from pigguf.inference.open_context import open_session  # noqa: E402
from pigguf.inference.run_config import RunConfig  # noqa: E402

NOVEL = ROOT / "tests/data/persuasion-chapters-3-5.txt"
FRAME = 9000
COMPUTING, WAITING = 0, 1  # cores


@dataclass(frozen=True)
class Size:
    """What is measured: tokens of the prompt, tokens generated, rounds, and delays."""

    prompt: int
    generated: int
    rounds: int
    workers: tuple[int, ...]
    delays: tuple[float, ...]


FULL = Size(2048, 64, 3, (1, 2, 3), (0.0, 0.001, 0.010))
QUICK = Size(256, 8, 1, (1, 3), (0.0, 0.010))


@dataclass(frozen=True)
class Measured:
    """The result of one client: seconds to open the model, tokens a second, and the generated tokens."""

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
    """Start a worker on every host except host 0, which runs the client."""
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
    """Return the prefix that makes a command run on one core."""
    return ("taskset", "-c", str(number))


def child(model: Path, size: Size, workers: tuple[str, ...]) -> Measured:
    """Measure one client, in this process."""
    settings = RunConfig(
        size.prompt + size.generated + 64,
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
            generation = session.generate(
                SamplingParams(temperature=0), size.generated + 1, prompt_lookup=False
            )
            tokens = [next(generation)]
            read = time.perf_counter()
            tokens += generation
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
