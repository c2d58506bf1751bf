"""`pigguf sessions`: what is kept is listed and removed, on a terminal and for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest
from support.command_line import Done
from support.prompt_cache_helpers import opened, write_model
from support.tiny_gguf import text_tokens

from pigguf.inference.prompt_cache import Kept, open_store

Run = Callable[..., Done]


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Kept]:
    """Two sessions, the last used first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("PIGGUF_SESSIONS_BUDGET", raising=False)
    path = write_model(tmp_path / "piglet.gguf")
    store = open_store()
    assert store is not None
    with opened(path, store) as session:
        for seed, length in ((1, 1100), (2, 2200)):
            session.truncate(0)
            session.set_prompt(text_tokens(length, seed))
    first, second = sorted(store.kept(), key=lambda session: session.tokens)
    os.utime(first.path, (1_700_000_000, 1_700_000_000))
    return [second, first]


def test_the_list_has_the_last_used_first(run: Run, kept: list[Kept], tmp_path: Path) -> None:
    done = run("sessions", "list")
    assert done.returncode == 0
    header, *rows = done.stdout.splitlines()
    assert header.split() == ["id", "model", "tokens", "size", "made", "last", "used"]
    assert [row.split()[:3] for row in rows] == [
        [kept[0].id, "piglet.gguf", "2,200"],
        [kept[1].id, "piglet.gguf", "1,100"],
    ]
    assert "2023-11-1" in rows[1]
    assert "2 sessions, " in done.stderr
    assert str(tmp_path / "pigguf" / "sessions") in done.stderr


def test_programs_get_json(run: Run, kept: list[Kept], tmp_path: Path) -> None:
    data = json.loads(run("sessions", "list", "--json").stdout)
    assert data["directory"] == str(tmp_path / "pigguf" / "sessions")
    assert data["budget_bytes"] > 0
    assert [session["id"] for session in data["sessions"]] == [session.id for session in kept]
    first = data["sessions"][0]
    assert first["tokens"] == 2200
    assert first["bytes"] == kept[0].path.stat().st_size
    assert first["model"] == str(tmp_path / "piglet.gguf")
    assert first["made"] <= first["used"] + 0.05  # the file system's clock is some milliseconds behind


def test_nothing_kept_is_no_error(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    done = run("sessions", "list")
    assert (done.returncode, done.stdout) == (0, "")
    assert "0 sessions" in done.stderr
    assert json.loads(run("sessions", "list", "--json").stdout)["sessions"] == []
    assert run("sessions", "clear", "--yes").returncode == 0
    assert not (tmp_path / "new").exists()


def test_sessions_are_removed_by_their_ids(run: Run, kept: list[Kept]) -> None:
    done = run("sessions", "remove", kept[0].id, "nothing")
    assert done.returncode == 2
    assert "'nothing'" in done.stderr
    assert kept[0].path.exists()
    done = run("sessions", "remove", kept[0].id)
    assert done.returncode == 0
    assert "1 session removed" in done.stderr
    assert [session.path.exists() for session in kept] == [False, True]


def test_clear_asks_first(run: Run, kept: list[Kept]) -> None:
    terminal = pexpect.spawn(
        sys.executable, ["-m", "pigguf", "sessions", "clear"], encoding="utf-8", timeout=60
    )
    terminal.expect("Remove all kept sessions.*N]: ")
    terminal.sendline("n")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 130
    assert all(session.path.exists() for session in kept)
    terminal = pexpect.spawn(
        sys.executable, ["-m", "pigguf", "sessions", "clear"], encoding="utf-8", timeout=60
    )
    terminal.expect("N]: ")
    terminal.sendline("y")
    terminal.expect("2 sessions removed")
    terminal.expect(pexpect.EOF)
    assert not any(session.path.exists() for session in kept)


def test_clear_without_a_terminal_takes_a_yes(
    run: Run, kept: list[Kept], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(os.devnull) as nothing, monkeypatch.context() as without:
        without.setattr(sys, "stdin", nothing)
        done = run("sessions", "clear")
    assert done.returncode == 2
    assert "--yes" in done.stderr
    kept[0].path.write_bytes(b"damaged")
    done = run("sessions", "clear", "--yes")
    assert done.returncode == 0
    assert not any(session.path.exists() for session in kept)


def test_a_budget_that_is_no_size_is_wrong_usage(
    run: Run, kept: list[Kept], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIGGUF_SESSIONS_BUDGET", "much")
    done = run("sessions", "list")
    assert done.returncode == 2
    assert "PIGGUF_SESSIONS_BUDGET" in done.stderr
