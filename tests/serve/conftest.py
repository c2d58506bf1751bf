"""Fixtures: a server of a tiny model, for tests through its HTTP API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.running_server import RunningServer, running_server
from support.tiny_chat import write_chat_model


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("serve") / "tiny.gguf", 8192)


@pytest.fixture(scope="module")
def tiny(tiny_path: Path) -> Iterator[RunningServer]:
    with running_server(tiny_path, "--slots", "2", "--no-prompt-cache") as served:
        yield served
