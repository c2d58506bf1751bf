"""Workers on other hosts, over a wire with delay and loss: the same tokens, no false alarm, and true ones."""

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

SOON = 10.0  # seconds within which a failure must be told
TESTS = Path(worker_client.__file__).parents[1]

pytestmark = pytest.mark.skipif(support.network.missing() is not None, reason=str(support.network.missing()))


@pytest.fixture
def start() -> Iterator[Start]:
    yield from started_workers()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_deep(tmp_path_factory.mktemp("network") / "tiny.gguf", layers=4)


def workers_on(wire: Network, start: Start, count: int) -> list[WorkerProcess]:
    """Workers on hosts from 1 on; the client is on host 0."""
    return [
        start("--trust-network", address=f"{wire.address(host)}:50052", on=wire.on(host))
        for host in range(1, count + 1)
    ]


def drawing(
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


def drawn(child: subprocess.Popen[str]) -> list[str]:
    out, err = child.communicate(timeout=500)
    assert child.returncode == 0, err
    return out.split()


@pytest.mark.parametrize("delay", [0.001, 0.010], ids=["1 ms", "10 ms"])
def test_the_same_tokens_over_a_slow_wire(start: Start, tiny: Path, delay: float) -> None:
    count = 32
    expected = drawn(drawing(tiny, count))
    with Network(3, delay) as wire:
        child = drawing(tiny, count, workers_on(wire, start, 2), wire.on(0))
        assert child.stdout is not None
        tokens = [child.stdout.readline().strip()]
        begun = time.monotonic()
        assert tokens + drawn(child) == expected
    # a token waits for each worker's answer; so the wire was between, whatever the machine's speed
    assert time.monotonic() - begun > (count - 1) * 2 * 2 * delay


@pytest.mark.slow
def test_packets_that_get_lost_are_no_stall(start: Start, tiny: Path) -> None:
    expected = drawn(drawing(tiny, 700))
    with Network(4, 0.010, loss=0.02) as wire:
        begun = time.monotonic()
        assert drawn(drawing(tiny, 700, workers_on(wire, start, 3), wire.on(0))) == expected
        assert time.monotonic() - begun > 700 * 3 * 0.020  # dozens of signs of life


@pytest.mark.slow
def test_weights_arrive_over_a_wire_that_loses_packets(start: Start, smollm2_gguf: Path) -> None:
    """90 MiB at what TCP makes of it, about a megabyte a second."""
    expected = drawn(drawing(smollm2_gguf, 20))
    with Network(3, 0.010, loss=0.005) as wire:
        assert drawn(drawing(smollm2_gguf, 20, workers_on(wire, start, 2), wire.on(0))) == expected


@pytest.mark.slow
@pytest.mark.parametrize("failure", ["stopped", "pulled cable"])
def test_a_stall_is_told_from_loss(start: Start, tiny: Path, failure: str) -> None:
    with Network(3, 0.010, loss=0.02) as wire:
        two = workers_on(wire, start, 2)
        child = drawing(tiny, 800, two, wire.on(0))
        assert child.stdout is not None
        for _ in range(20):
            assert child.stdout.readline()
        if failure == "stopped":
            two[1].signal(signal.SIGSTOP)
        else:
            wire.loss = 1.0
        begun = time.monotonic()
        _, err = child.communicate(timeout=60)
        assert time.monotonic() - begun < SOON
    assert child.returncode == 8
    assert "did not respond" in err
    assert two[1].address in err or failure == "pulled cable"  # which pulls both


def test_a_cable_that_is_pulled(start: Start, tiny: Path) -> None:
    """No end hears of the other any more, and no connection is ended."""
    with Network(2, 0.001) as wire:
        workers = workers_on(wire, start, 1)
        child = drawing(tiny, 1500, workers, wire.on(0))
        assert child.stdout is not None
        assert child.stdout.readline()
        wire.loss = 1.0
        begun = time.monotonic()
        _, err = child.communicate(timeout=60)
        assert time.monotonic() - begun < SOON
    assert child.returncode == 8
    assert f"{workers[0].address} did not respond" in err
