"""Weights that a worker keeps: proven, bounded, and not sent again."""

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


def keep(cache: WeightCache, hashed: bytes, chunks: list[bytes] = WEIGHTS) -> None:
    assert b"".join(cache.store(hashed, sum(map(len, chunks)), iter(chunks))) == b"".join(chunks)


def found(cache: WeightCache, hashed: bytes) -> bytes | None:
    kept = cache.load(hashed)
    if kept is None:
        return None
    size, chunks = kept
    whole = b"".join(chunks)
    assert len(whole) == size
    return whole


def test_what_is_kept_is_found(cache: WeightCache) -> None:
    assert found(cache, ONE) is None
    keep(cache, ONE)
    assert found(cache, ONE) == b"".join(WEIGHTS)
    assert found(cache, TWO) is None


@pytest.mark.parametrize("damage", ["a bit", "cut short", "empty"])
def test_what_is_damaged_is_forgotten(cache: WeightCache, tmp_path: Path, damage: str) -> None:
    keep(cache, ONE)
    [path] = (tmp_path / "weights").iterdir()
    data = path.read_bytes()
    path.write_bytes({"a bit": b"A" + data[1:], "cut short": data[:-20], "empty": b""}[damage])
    assert found(cache, ONE) is None
    assert not path.exists()


def test_what_was_used_longest_ago_makes_room(cache: WeightCache, tmp_path: Path) -> None:
    keep(cache, ONE)
    keep(cache, TWO)
    for age, path in enumerate(sorted((tmp_path / "weights").iterdir())):
        os.utime(path, (age, age))
    assert found(cache, ONE)  # and is the newest now
    keep(cache, THREE)
    assert [bool(found(cache, hashed)) for hashed in (ONE, TWO, THREE)] == [True, False, True]


def test_what_is_beyond_the_bound_passes(cache: WeightCache, tmp_path: Path) -> None:
    keep(cache, ONE)
    keep(cache, TWO, [b"c" * 9_990])
    assert found(cache, TWO) is None
    assert found(cache, ONE)


def test_what_a_sender_leaves_unfinished_is_not_kept(cache: WeightCache, tmp_path: Path) -> None:
    def leaving() -> Iterator[bytes]:
        yield b"a"
        raise ConnectionError("the other end hung up")

    with pytest.raises(ConnectionError):
        list(cache.store(ONE, 2, leaving()))
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_disk_that_refuses_does_not_hold_weights_up(
    cache: WeightCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "weights").rmdir()
    with caplog.at_level(logging.WARNING, "pigguf"):
        keep(cache, ONE)
    assert "weights are not kept for the next time" in caplog.text


def test_large_weights_come_once(
    start: Start, smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of SmolLM2 that is the output matrix: 29 MiB of 92."""
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
        worker = start("--cache", "1G")  # another process: it is the disk that remembers
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
