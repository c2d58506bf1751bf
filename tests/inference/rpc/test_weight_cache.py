"""A worker's weight cache: verified, limited in size, and not sent again."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from inference.rpc.test_rpc import addresses, greedy, running
from support.worker_process import WorkerProcess, started_workers

from pigguf.inference.rpc.client import connect
from pigguf.inference.rpc.weight_cache import WeightCache
from pigguf.llama_cpp_internals.rpc_protocol import RpcCommand, RpcConnection

Start = Callable[..., WorkerProcess]

ONE, TWO, THREE = (bytes([number]) * 8 for number in (1, 2, 3))
WEIGHTS = [b"a" * 3000, b"b" * 1000]


@pytest.fixture
def start() -> Iterator[Start]:
    yield from started_workers()


@pytest.fixture
def cache(tmp_path: Path) -> WeightCache:
    return WeightCache(tmp_path / "weights", 10_000)


def store(cache: WeightCache, content_hash: bytes, chunks: list[bytes] = WEIGHTS) -> None:
    assert b"".join(cache.store(content_hash, sum(map(len, chunks)), iter(chunks))) == b"".join(chunks)


def cached_bytes(cache: WeightCache, content_hash: bytes) -> bytes | None:
    cached = cache.load(content_hash)
    if cached is None:
        return None
    size, chunks = cached
    content = b"".join(chunks)
    assert len(content) == size
    return content


def test_stored_weights_are_loaded(cache: WeightCache) -> None:
    assert cached_bytes(cache, ONE) is None
    store(cache, ONE)
    assert cached_bytes(cache, ONE) == b"".join(WEIGHTS)
    assert cached_bytes(cache, TWO) is None


@pytest.mark.parametrize("damage", ["a bit", "cut short", "empty"])
def test_damaged_weights_are_removed(cache: WeightCache, tmp_path: Path, damage: str) -> None:
    store(cache, ONE)
    [path] = (tmp_path / "weights").iterdir()
    data = path.read_bytes()
    path.write_bytes({"a bit": b"A" + data[1:], "cut short": data[:-20], "empty": b""}[damage])
    assert cached_bytes(cache, ONE) is None
    assert not path.exists()


def test_the_least_recently_used_weights_are_evicted(cache: WeightCache, tmp_path: Path) -> None:
    store(cache, ONE)
    store(cache, TWO)
    for age, path in enumerate(sorted((tmp_path / "weights").iterdir())):
        os.utime(path, (age, age))
    assert cached_bytes(cache, ONE)  # and is the newest now
    store(cache, THREE)
    assert [bool(cached_bytes(cache, content_hash)) for content_hash in (ONE, TWO, THREE)] == [
        True,
        False,
        True,
    ]


def test_weights_larger_than_the_cache_are_not_stored(cache: WeightCache, tmp_path: Path) -> None:
    store(cache, ONE)
    store(cache, TWO, [b"c" * 9_990])
    assert cached_bytes(cache, TWO) is None
    assert cached_bytes(cache, ONE)


def test_incomplete_weights_are_not_stored(cache: WeightCache, tmp_path: Path) -> None:
    def disconnecting() -> Iterator[bytes]:
        yield b"a"
        raise ConnectionError("the other end disconnected")

    with pytest.raises(ConnectionError):
        list(cache.store(ONE, 2, disconnecting()))
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_disk_error_does_not_stop_weights(
    cache: WeightCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "weights").rmdir()
    with caplog.at_level(logging.WARNING, "pigguf"):
        store(cache, ONE)
    assert "the weights are not cached" in caplog.text


def test_large_weights_are_sent_once(
    start: Start, smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only large weight of SmolLM2 is the output matrix: 29 MiB of 92."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sent = 0
    send = RpcConnection.send

    def counted(self: RpcConnection, command: RpcCommand, length: int, data: bytes) -> None:
        nonlocal sent
        sent += length
        send(self, command, length, data)

    monkeypatch.setattr(RpcConnection, "send", counted)
    costs, texts = [], []
    prompt = list(range(100, 140))
    for damaged in (False, False, True):
        worker = start("--cache", "1G")  # another process, with the same cache on disk
        if damaged:
            [path] = (tmp_path / "pigguf" / "weights").iterdir()
            path.write_bytes(path.read_bytes()[:-1000])
        sent = 0
        with connect(addresses([worker])) as workers, running(smollm2_gguf, workers) as session:
            costs.append(sent)
            texts.append(greedy(session, prompt, 16))
        worker.end()
    first, second, third = costs
    assert first - second > 25 << 20
    assert third == pytest.approx(first, rel=0.01)
    with running(smollm2_gguf, None) as session:
        assert texts == [greedy(session, prompt, 16)] * 3
