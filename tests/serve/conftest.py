"""A server of a tiny model, for the tests that ask one from outside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.running_server import Served, serving
from support.tiny_chat import write_chatting


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chatting(tmp_path_factory.mktemp("serve") / "tiny.gguf", 8192)


@pytest.fixture(scope="module")
def tiny(tiny_path: Path) -> Iterator[Served]:
    with serving(tiny_path, "--slots", "2", "--no-sessions") as served:
        yield served
