"""`pigguf prompt-cache` lists and removes cached prompts, on a terminal and for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest
from support.command_line import CommandResult
from support.prompt_cache_helpers import opened, write_model
from support.tiny_gguf import text_tokens

from pigguf.inference.prompt_cache import CachedPrompt, open_prompt_cache

Run = Callable[..., CommandResult]


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[CachedPrompt]:
    """Two cached prompts, the last used first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("PIGGUF_PROMPT_CACHE_BUDGET", raising=False)
    path = write_model(tmp_path / "piglet.gguf")
    store = open_prompt_cache()
    assert store is not None
    with opened(path, store) as session:
        for seed, length in ((1, 1100), (2, 2200)):
            session.truncate(0)
            session.set_prompt(text_tokens(length, seed))
    first, second = sorted(store.entries(), key=lambda entry: entry.tokens)
    os.utime(first.path, (1_700_000_000, 1_700_000_000))
    return [second, first]


def test_the_list_has_the_last_used_first(run: Run, cached: list[CachedPrompt], tmp_path: Path) -> None:
    result = run("prompt-cache", "list")
    assert result.returncode == 0
    header, *rows = result.stdout.splitlines()
    assert header.split() == ["id", "model", "tokens", "size", "made", "last", "used"]
    assert [row.split()[:3] for row in rows] == [
        [cached[0].id, "piglet.gguf", "2,200"],
        [cached[1].id, "piglet.gguf", "1,100"],
    ]
    assert "2023-11-1" in rows[1]
    assert "2 cached prompts, " in result.stderr
    assert str(tmp_path / "pigguf" / "prompt-cache") in result.stderr


def test_programs_get_json(run: Run, cached: list[CachedPrompt], tmp_path: Path) -> None:
    data = json.loads(run("prompt-cache", "list", "--json").stdout)
    assert data["directory"] == str(tmp_path / "pigguf" / "prompt-cache")
    assert data["budget_bytes"] > 0
    assert [entry["id"] for entry in data["entries"]] == [entry.id for entry in cached]
    first = data["entries"][0]
    assert first["tokens"] == 2200
    assert first["bytes"] == cached[0].path.stat().st_size
    assert first["model"] == str(tmp_path / "piglet.gguf")
    assert first["made"] <= first["used"] + 0.05  # the file system's clock is some milliseconds behind


def test_an_empty_cache_is_not_an_error(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    result = run("prompt-cache", "list")
    assert (result.returncode, result.stdout) == (0, "")
    assert "0 cached prompts" in result.stderr
    assert json.loads(run("prompt-cache", "list", "--json").stdout)["entries"] == []
    assert run("prompt-cache", "clear", "--yes").returncode == 0
    assert not (tmp_path / "new").exists()


def test_cached_prompts_are_removed_by_their_ids(run: Run, cached: list[CachedPrompt]) -> None:
    result = run("prompt-cache", "remove", cached[0].id, "nothing")
    assert result.returncode == 2
    assert "'nothing'" in result.stderr
    assert cached[0].path.exists()
    result = run("prompt-cache", "remove", cached[0].id)
    assert result.returncode == 0
    assert "1 cached prompt removed" in result.stderr
    assert [entry.path.exists() for entry in cached] == [False, True]


def test_clear_asks_first(run: Run, cached: list[CachedPrompt]) -> None:
    terminal = pexpect.spawn(
        sys.executable, ["-m", "pigguf", "prompt-cache", "clear"], encoding="utf-8", timeout=60
    )
    terminal.expect("Remove all cached prompts.*N]: ")
    terminal.sendline("n")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 130
    assert all(entry.path.exists() for entry in cached)
    terminal = pexpect.spawn(
        sys.executable, ["-m", "pigguf", "prompt-cache", "clear"], encoding="utf-8", timeout=60
    )
    terminal.expect("N]: ")
    terminal.sendline("y")
    terminal.expect("2 cached prompts removed")
    terminal.expect(pexpect.EOF)
    assert not any(entry.path.exists() for entry in cached)


def test_clear_without_a_terminal_takes_a_yes(
    run: Run, cached: list[CachedPrompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(os.devnull) as nothing, monkeypatch.context() as without:
        without.setattr(sys, "stdin", nothing)
        result = run("prompt-cache", "clear")
    assert result.returncode == 2
    assert "--yes" in result.stderr
    cached[0].path.write_bytes(b"damaged")
    result = run("prompt-cache", "clear", "--yes")
    assert result.returncode == 0
    assert not any(entry.path.exists() for entry in cached)


def test_an_invalid_budget_is_wrong_usage(
    run: Run, cached: list[CachedPrompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIGGUF_PROMPT_CACHE_BUDGET", "much")
    result = run("prompt-cache", "list")
    assert result.returncode == 2
    assert "PIGGUF_PROMPT_CACHE_BUDGET" in result.stderr
