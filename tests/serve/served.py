"""A real server: `pigguf serve` as a process of its own, on a free port of this machine."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest


class Served:
    """A running server.

    Attributes:
        url: without a path; said: the lines of stderr so far.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.said: list[str] = []
        assert process.stderr is not None
        for line in process.stderr:
            self.said.append(line)
            if found := re.search(r"answers at (http://\S+)/v1", line):
                self.url = found[1]
                break
        else:
            pytest.fail("".join(self.said))
        self._reader = threading.Thread(target=self.said.extend, args=[process.stderr], daemon=True)
        self._reader.start()

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def wait(self) -> int:
        """The exit code, once it ends by itself."""
        code = self.process.wait(timeout=60)
        self._reader.join(timeout=10)
        return code


@contextmanager
def serving(*arguments: str | Path) -> Iterator[Served]:
    command = [sys.executable, "-m", "pigguf", "serve", *map(str, arguments), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            yield Served(process)
        finally:
            process.kill()
