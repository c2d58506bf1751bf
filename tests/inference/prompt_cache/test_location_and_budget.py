"""Where the prompt cache is, its budget, and which of LongRoPE's factors a context uses."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny_gguf import METADATA, WIDTH, write_tiny

from pigguf.errors import UsageError
from pigguf.gguf_io.metadata import string, u32
from pigguf.inference.engine import Context, ContextOptions, Model
from pigguf.inference.prompt_cache import PromptCacheStore, open_prompt_cache, prompt_cache_directory
from pigguf.inference.prompt_cache.cache_key import state_key
from pigguf.inference.prompt_cache.location_and_budget import DEFAULT_BUDGET_BYTES, budget_from_environment


def test_the_directory_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert prompt_cache_directory() == tmp_path / ".cache/pigguf/prompt-cache"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert prompt_cache_directory() == tmp_path / ".cache/pigguf/prompt-cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert prompt_cache_directory() == tmp_path / "elsewhere/pigguf/prompt-cache"


@pytest.mark.parametrize(
    ("value", "bytes_"),
    [("", None), ("0", 0), ("500M", 500_000_000), ("1.5G", 1_500_000_000), (" 20GB ", 20 * 10**9), ("7", 7)],
)
def test_a_budget_is_a_size(monkeypatch: pytest.MonkeyPatch, value: str, bytes_: int | None) -> None:
    monkeypatch.setenv("PIGGUF_PROMPT_CACHE_BUDGET", value)
    assert budget_from_environment() == bytes_
    assert (open_prompt_cache() is None) == (bytes_ == 0)


@pytest.mark.parametrize("value", ["lots", "-1", "5X", "1e9", "G", "١G"])
def test_a_wrong_size_is_an_error(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("PIGGUF_PROMPT_CACHE_BUDGET", value)
    with pytest.raises(UsageError, match="PIGGUF_PROMPT_CACHE_BUDGET is"):
        open_prompt_cache()


def test_the_default_budget_leaves_most_of_the_disk_free(tmp_path: Path) -> None:
    import shutil

    default = PromptCacheStore(tmp_path / "not" / "there").budget()
    assert 0 < default <= min(DEFAULT_BUDGET_BYTES, shutil.disk_usage(tmp_path).total // 4)
    assert PromptCacheStore(tmp_path, 5).budget() == 5


def test_a_context_with_longropes_long_factors_has_another_key(tmp_path: Path) -> None:
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
