"""A cache directory of its own for every test, and a tiny model with its checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.tiny_checkpoints import make_checkpoint

import pigguf
from pigguf.inference.engine import Model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory of journals and hashes, a new one for every test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pigguf" / "evals"


@dataclass(frozen=True)
class Tiny:
    """A tiny model of 128 tokens' window, as a checkpoint and as an F32 GGUF file that adds no BOS."""

    checkpoint: Path
    gguf: Path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    path = tmp_path_factory.mktemp("tiny")
    checkpoint = make_checkpoint(path / "checkpoint", max_position_embeddings=128)
    pigguf.convert(checkpoint, path / "tiny.gguf", type="F32")
    return Tiny(checkpoint, path / "tiny.gguf")


@pytest.fixture(scope="session")
def vocabulary(tiny: Tiny) -> Iterator[Model]:
    """Return the vocabulary of the tiny model, without weights."""
    with Model.open(tiny.gguf, vocab_only=True) as model:
        yield model
