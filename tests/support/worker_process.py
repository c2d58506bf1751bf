"""Real workers: `pigguf worker` as a child process on the loopback interface."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pigguf


class WorkerProcess:
    """One `pigguf worker`.

    Args:
        options: options of the command.
        address: where it listens.
        on: a prefix for the command, from Network.on.

    Attributes:
        address: where it listens.
        lends: the line with the devices it serves: the CPU.
        child: the process.
    """

    def __init__(self, *options: str, address: str = "127.0.0.1:0", on: Sequence[str] = ()) -> None:
        self.child = subprocess.Popen(
            [*on, sys.executable, "-m", "pigguf", "worker", "--listen", address, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(pigguf.__file__).parent.parent)},
        )
        assert self.child.stdout is not None
        match = re.match(r"address +(\S+)", self.child.stdout.readline())
        assert match, self.child.communicate(timeout=10)
        self.address = match[1]
        self.device_line = self.child.stdout.readline()

    def signal(self, number: int) -> None:
        self.child.send_signal(number)

    def end(self) -> None:
        with suppress(ProcessLookupError):
            self.child.kill()
        self.child.communicate()


def started_workers() -> Iterator[Callable[..., WorkerProcess]]:
    """Yield a function that starts workers, and kill them all at the end, stopped ones too; for a fixture."""
    workers: list[WorkerProcess] = []

    def start(*options: str, address: str = "127.0.0.1:0", on: Sequence[str] = ()) -> WorkerProcess:
        workers.append(WorkerProcess(*options, address=address, on=on))
        return workers[-1]

    try:
        yield start
    finally:
        for worker in workers:
            worker.end()
