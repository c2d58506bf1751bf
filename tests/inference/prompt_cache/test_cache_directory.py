"""Where sessions are kept, how much they may take, and which list of LongRoPE a context takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny_gguf import METADATA, WIDTH, write_tiny

from pigguf.errors import UsageError
from pigguf.gguf_io.metadata import string, u32
from pigguf.inference.engine import Context, ContextOptions, Model
from pigguf.inference.prompt_cache import PromptCacheStore, open_store, sessions_directory
from pigguf.inference.prompt_cache.cache_directory import MOST_BYTES, stated_budget
from pigguf.inference.prompt_cache.cache_key import state_key


def test_the_directory_is_the_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert sessions_directory() == tmp_path / ".cache/pigguf/sessions"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert sessions_directory() == tmp_path / ".cache/pigguf/sessions"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert sessions_directory() == tmp_path / "elsewhere/pigguf/sessions"


@pytest.mark.parametrize(
    ("said", "bytes_"),
    [("", None), ("0", 0), ("500M", 500_000_000), ("1.5G", 1_500_000_000), (" 20GB ", 20 * 10**9), ("7", 7)],
)
def test_a_budget_is_a_size(monkeypatch: pytest.MonkeyPatch, said: str, bytes_: int | None) -> None:
    monkeypatch.setenv("PIGGUF_SESSIONS_BUDGET", said)
    assert stated_budget() == bytes_
    assert (open_store() is None) == (bytes_ == 0)


@pytest.mark.parametrize("said", ["lots", "-1", "5X", "1e9", "G", "١G"])
def test_what_is_no_size_is_refused(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("PIGGUF_SESSIONS_BUDGET", said)
    with pytest.raises(UsageError, match="PIGGUF_SESSIONS_BUDGET is"):
        open_store()


def test_the_usual_budget_leaves_most_of_the_disk_alone(tmp_path: Path) -> None:
    import shutil

    usual = PromptCacheStore(tmp_path / "not" / "there").budget()
    assert 0 < usual <= min(MOST_BYTES, shutil.disk_usage(tmp_path).total // 4)
    assert PromptCacheStore(tmp_path, 5).budget() == 5


def test_a_window_that_takes_longropes_long_factors_has_states_of_its_own(tmp_path: Path) -> None:
    heads = int(METADATA["llama.attention.head_count"].value)
    factors = (WIDTH // heads // 2,)
    keys = {
        "llama.rope.scaling.type": string("longrope"),
        "llama.rope.scaling.original_context_length": u32(512),
    }
    path = write_tiny(
        tmp_path / "long.gguf",
        keys,
        shapes={"rope_factors_long.weight": factors, "rope_factors_short.weight": factors},
    )

    def key(length: int) -> str:
        with Model.open(path) as model, Context(model, ContextOptions(length=length)) as context:
            return state_key(context)

    assert key(256) == key(512)
    assert key(513) == key(1024) != key(512)
