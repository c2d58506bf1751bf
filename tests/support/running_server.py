"""A real server for tests: `pigguf serve` in a subprocess, on a free port of this machine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest


class RunningServer:
    """A running server.

    Attributes:
        process: the subprocess.
        stderr_lines: what it has written to stderr.
        url: its URL, without a path.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.stderr_lines: list[str] = []
        self._clients = ExitStack()
        assert process.stderr is not None
        for line in process.stderr:
            self.stderr_lines.append(line)
            if found := re.search(r"is served at (http://\S+)/v1", line):
                self.url = found[1]
                break
        else:
            pytest.fail("".join(self.stderr_lines))
        self._reader = threading.Thread(target=self.stderr_lines.extend, args=[process.stderr], daemon=True)
        self._reader.start()

    def client(self, key: str = "none") -> openai.OpenAI:
        """Return OpenAI's client of the server; it is closed with the server."""
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)
        return self._clients.enter_context(client)

    def close(self) -> None:
        """Kill the server."""
        self._clients.close()
        self.process.kill()

    def wait(self) -> int:
        """Wait until the server exits by itself, and return its exit code."""
        code = self.process.wait(timeout=60)
        self._reader.join(timeout=10)
        return code


def running_server(*arguments: str | Path, port: int = 0) -> AbstractContextManager[RunningServer]:
    """Run `pigguf serve` with these arguments; port 0 takes any free port."""
    return _running("-m", "pigguf", "serve", *map(str, arguments), "--port", str(port))


def server_with_limits(
    path: Path, limits: str = "ServerLimits()", queue: int = 64
) -> AbstractContextManager[RunningServer]:
    """Run a server of one slot with limits that tests can wait for.

    Args:
        path: the model.
        limits: a Python expression.
        queue: the most waiting requests of a client.
    """
    return _running(
        "-c",
        "import sys\n"
        "from pigguf.inference.run_config import RunConfig\n"
        "from pigguf.serve.model_host import ModelHost\n"
        "from pigguf.serve.http_server import listen, listener_url, serve\n"
        "from pigguf.serve.limits import ServerLimits\n"
        "run = RunConfig(prompt_cache=False)\n"
        f"with listen('127.0.0.1', 0, None) as at, \\\n"
        f"        ModelHost(sys.argv[1], run, max_waiting={queue}) as host:\n"
        f"    serve(host, at, limits={limits},\n"
        "        on_ready=lambda _: print(\n"
        "            f'is served at {listener_url(at)}/v1', file=sys.stderr, flush=True))\n",
        str(path),
    )


@contextmanager
def _running(*arguments: str) -> Iterator[RunningServer]:
    command = [sys.executable, *arguments]
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process,
        closing(RunningServer(process)) as server,
    ):
        yield server


def post(url: str, body: Any, **headers: str) -> tuple[int, Any, Any]:
    """Return the status, the JSON and the headers of a response; a body of None is a GET request."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **headers}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as answer:
            return answer.status, json.load(answer), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error), error.headers


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return str(answer.read().decode())


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until a condition is true; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
