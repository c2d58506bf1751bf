"""The model under test: its facts in a report, its hash, and its context window."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

import pigguf
from pigguf.errors import ContextOverflow, GGUFError
from pigguf.evals.model_under_test import ModelUnderTest
from pigguf.evals.position_variants import PositionVariant
from pigguf.inference.engine import RuntimeRope
from pigguf.inference.run_config import EngineConfig


class Stages:
    """The names of the stages a Progress receives."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def begin(self, stage: str, total: float, unit: str) -> None:
        self.names.append(stage)

    def advance(self, amount: float) -> None:
        pass

    def end(self) -> None:
        pass


@pytest.fixture
def model(tiny, tmp_path: Path) -> Path:
    return Path(shutil.copy(tiny.gguf, tmp_path / "model.gguf"))


def test_a_file_is_hashed_once_and_again_when_it_changed(model: Path) -> None:
    stages = Stages()
    for _ in range(2):
        subject = ModelUnderTest.from_file(model, progress=stages)
        assert subject.sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    assert stages.names == ["hashing"]
    with model.open("ab") as file:
        file.write(b"\0" * 32)
    assert ModelUnderTest.from_file(model).sha256 == hashlib.sha256(model.read_bytes()).hexdigest()


def test_a_damaged_note_of_the_hash_is_no_obstacle(model: Path, cache: Path) -> None:
    right = ModelUnderTest.from_file(model).sha256
    (note,) = cache.glob("sha256-*")
    for damage in ("", "{", "[]", '{"file": 1}'):
        note.write_text(damage)
        assert ModelUnderTest.from_file(model).sha256 == right


def test_a_report_says_what_was_measured(model: Path, tiny, tmp_path: Path) -> None:
    pigguf.quantize(model, tmp_path / "small.gguf", type="Q8_0")
    data = ModelUnderTest.from_file(tmp_path / "small.gguf").as_data()
    assert data["type"] == "Q8_0"
    assert data["bytes"] == (tmp_path / "small.gguf").stat().st_size
    assert data["architecture"] == "llama"
    assert data["rope"] == {
        "kind": "none",
        "factor": 1.0,
        "base": 10000.0,
        "original_context_length": 128,
        "context_length": 128,
        "parameters": {},
    }
    assert ModelUnderTest.from_file(model).as_data()["type"] == "F32"


def test_a_window_beyond_the_models_is_refused_with_what_to_do(model: Path) -> None:
    subject = ModelUnderTest.from_file(model)
    assert subject.supports_window(128)
    assert not subject.supports_window(129)
    with pytest.raises(ContextOverflow, match=r"129 tokens is beyond the 128 that .*model\.gguf") as refusal:
        subject.open(129).__enter__()
    assert "`compare=none`" in str(refusal.value.hint)


def test_an_override_takes_any_window_or_its_own(model: Path) -> None:
    subject = ModelUnderTest.from_file(model, EngineConfig(cache_k="bf16", cache_v="bf16"))
    any_window = subject.with_variant(PositionVariant("linear:4", RuntimeRope(factor=4.0)))
    assert any_window.supports_window(512)
    with any_window.open(512) as context:
        assert context.length == 512
        assert context.model.rope.factor == 4.0
        assert context.options.cache_v == "bf16"
    own_window = PositionVariant("none", RuntimeRope(factor=1.0, context_length=256))
    assert not subject.with_variant(own_window).supports_window(512)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("no model" * 10)
    with pytest.raises(GGUFError):
        ModelUnderTest.from_file(tmp_path / "text.gguf")
    with pytest.raises(GGUFError, match=r"nothing\.gguf"):
        ModelUnderTest.from_file(tmp_path / "nothing.gguf")
