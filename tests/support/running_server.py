"""A real server: `pigguf serve` as a process of its own, on a free port of this machine."""

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
        url: without a path; said: the lines of stderr so far.
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
        """OpenAI's, which is closed with the server."""
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)
        return self._clients.enter_context(client)

    def close(self) -> None:
        """End it at once."""
        self._clients.close()
        self.process.kill()

    def wait(self) -> int:
        """The exit code, once it ends by itself."""
        code = self.process.wait(timeout=60)
        self._reader.join(timeout=10)
        return code


def running_server(*arguments: str | Path, port: int = 0) -> AbstractContextManager[RunningServer]:
    """The command with these arguments; port 0 is any that is free."""
    return _running("-m", "pigguf", "serve", *map(str, arguments), "--port", str(port))


def server_with_limits(
    path: Path, limits: str = "ServerLimits()", queue: int = 64
) -> AbstractContextManager[RunningServer]:
    """A server of one slot with limits that no test can wait for as they are."""
    return _running(
        "-c",
        "import sys\n"
        "from pigguf.inference.run_config import RunConfig\n"
        "from pigguf.serve.model_host import ModelHost\n"
        "from pigguf.serve.http_server import listen, listener_url, serve\n"
        "from pigguf.serve.limits import ServerLimits\n"
        "run = RunConfig(prompt_cache=False)\n"
        f"with listen('127.0.0.1', 0, None) as at, ModelHost(sys.argv[1], run, max_waiting={queue}) as host:\n"
        f"    serve(host, at, limits={limits},\n"
        "        on_ready=lambda _: print(f'is served at {listener_url(at)}/v1', file=sys.stderr, flush=True))\n",
        str(path),
    )


@contextmanager
def _running(*arguments: str) -> Iterator[RunningServer]:
    command = [sys.executable, *arguments]
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process,
        closing(RunningServer(process)) as served,
    ):
        yield served


def post(url: str, body: Any, **headers: str) -> tuple[int, Any, Any]:
    """The status, the JSON and the headers of an answer; a body of None is a GET."""
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


def wait_until(come: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not come():
        assert time.monotonic() < end
        time.sleep(0.01)
