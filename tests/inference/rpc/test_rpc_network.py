"""Workers on other hosts, over a network with delay and loss: the same tokens, and no false alarms."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import support.network
from support import worker_client
from support.network import Network
from support.tiny_gguf import write_deep
from support.worker_process import WorkerProcess, started_workers

import pigguf

Start = Callable[..., WorkerProcess]

SOON = 10.0  # seconds within which a failure must be reported
TESTS = Path(worker_client.__file__).parents[1]

pytestmark = pytest.mark.skipif(support.network.missing() is not None, reason=str(support.network.missing()))


@pytest.fixture
def start() -> Iterator[Start]:
    yield from started_workers()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_deep(tmp_path_factory.mktemp("network") / "tiny.gguf", layers=4)


def workers_on(wire: Network, start: Start, count: int) -> list[WorkerProcess]:
    """Start workers on hosts from 1 on; the client is on host 0."""
    return [
        start("--trust-network", address=f"{wire.address(host)}:50052", on=wire.on(host))
        for host in range(1, count + 1)
    ]


def start_generating(
    model: Path, count: int, workers: Sequence[WorkerProcess] = (), on: Sequence[str] = ()
) -> subprocess.Popen[str]:
    addresses = [worker.address for worker in workers]
    root = Path(pigguf.__file__).parent.parent
    return subprocess.Popen(
        [*on, sys.executable, worker_client.__file__, str(model), str(count), *addresses],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{TESTS}"},
    )


def generated_tokens(child: subprocess.Popen[str]) -> list[str]:
    out, err = child.communicate(timeout=500)
    assert child.returncode == 0, err
    return out.split()


@pytest.mark.parametrize("delay", [0.001, 0.010], ids=["1 ms", "10 ms"])
def test_the_same_tokens_over_a_slow_network(start: Start, tiny: Path, delay: float) -> None:
    count = 32
    expected = generated_tokens(start_generating(tiny, count))
    with Network(3, delay) as wire:
        child = start_generating(tiny, count, workers_on(wire, start, 2), wire.on(0))
        assert child.stdout is not None
        tokens = [child.stdout.readline().strip()]
        start_time = time.monotonic()
        assert tokens + generated_tokens(child) == expected
    # a token waits for each worker's response, so the delay shows whatever the machine's speed
    assert time.monotonic() - start_time > (count - 1) * 2 * 2 * delay


@pytest.mark.slow
def test_lost_packets_are_not_a_stall(start: Start, tiny: Path) -> None:
    expected = generated_tokens(start_generating(tiny, 700))
    with Network(4, 0.010, loss=0.02) as wire:
        start_time = time.monotonic()
        assert (
            generated_tokens(start_generating(tiny, 700, workers_on(wire, start, 3), wire.on(0))) == expected
        )
        assert time.monotonic() - start_time > 700 * 3 * 0.020  # dozens of heartbeats


@pytest.mark.slow
def test_weights_arrive_over_a_network_that_loses_packets(start: Start, smollm2_gguf: Path) -> None:
    """Send 90 MiB, which TCP does at about a megabyte per second here."""
    expected = generated_tokens(start_generating(smollm2_gguf, 20))
    with Network(3, 0.010, loss=0.005) as wire:
        assert (
            generated_tokens(start_generating(smollm2_gguf, 20, workers_on(wire, start, 2), wire.on(0)))
            == expected
        )


@pytest.mark.slow
@pytest.mark.parametrize("failure", ["stopped", "disconnected cable"])
def test_a_stall_is_distinguished_from_loss(start: Start, tiny: Path, failure: str) -> None:
    with Network(3, 0.010, loss=0.02) as wire:
        two = workers_on(wire, start, 2)
        child = start_generating(tiny, 800, two, wire.on(0))
        assert child.stdout is not None
        for _ in range(20):
            assert child.stdout.readline()
        if failure == "stopped":
            two[1].signal(signal.SIGSTOP)
        else:
            wire.loss = 1.0
        start_time = time.monotonic()
        _, err = child.communicate(timeout=60)
        assert time.monotonic() - start_time < SOON
    assert child.returncode == 8
    assert "did not respond" in err
    assert two[1].address in err or failure == "disconnected cable"  # which affects both


def test_a_disconnected_cable(start: Start, tiny: Path) -> None:
    """Neither end receives anything any more, and no connection is closed."""
    with Network(2, 0.001) as wire:
        workers = workers_on(wire, start, 1)
        child = start_generating(tiny, 1500, workers, wire.on(0))
        assert child.stdout is not None
        assert child.stdout.readline()
        wire.loss = 1.0
        start_time = time.monotonic()
        _, err = child.communicate(timeout=60)
        assert time.monotonic() - start_time < SOON
    assert child.returncode == 8
    assert f"{workers[0].address} did not respond" in err
