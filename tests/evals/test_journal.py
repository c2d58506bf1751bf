"""The journal: finished pieces survive whatever ends the process, and only for the same evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pigguf.errors import OutputError
from pigguf.evals.journal import Journal

SETTINGS: dict[str, Any] = {"windows": [2048], "seed": 1}
VERSIONS = {"pigguf": "1"}


def journal(sha256: str = "aa", name: str = "perplexity", **settings: Any) -> Journal:
    return Journal(sha256, name, {**SETTINGS, **settings}, VERSIONS)


def never() -> Any:
    raise AssertionError("computed again")


class Stopped(Exception):
    pass


def leave_behind(pieces: dict[str, Any]) -> Path:
    """A journal as an evaluation leaves it that was stopped after these pieces; its file."""
    with pytest.raises(Stopped), journal() as left:
        for key, value in pieces.items():
            left.get_or_compute(key, lambda value=value: value)
        raise Stopped
    return left.path


def test_a_piece_is_computed_once_and_read_back_as_it_was() -> None:
    values = {"a": [1.1, 2**-1074, -1e300], "b": {"text": 'line\nend"', "none": None}, "c/1": 3}
    leave_behind(values)
    with journal() as again:
        assert {key: again.get_or_compute(key, never) for key in values} == values
        assert {key: again[key] for key in values} == values
        assert "d" not in again


def test_a_first_run_sees_what_a_resumed_one_would() -> None:
    with journal() as first:
        assert first.get_or_compute("pair", lambda: (1, 2)) == [1, 2]


def test_it_is_gone_when_the_evaluation_is_done(cache: Path) -> None:
    path = leave_behind({"a": 1})
    assert path.exists()
    with journal() as again:
        again.get_or_compute("a", never)
    assert list(cache.iterdir()) == []


def test_nothing_finished_leaves_no_file(cache: Path) -> None:
    with pytest.raises(Stopped), journal():
        raise Stopped
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "other",
    [
        lambda: journal(sha256="bb"),
        lambda: journal(name="passkey"),
        lambda: journal(seed=2),
        lambda: journal(extra=None),
        lambda: Journal("aa", "perplexity", SETTINGS, {"pigguf": "2"}),
    ],
)
def test_any_other_evaluation_begins_anew(other: Callable[[], Journal]) -> None:
    leave_behind({"a": 1})
    with other() as anew:
        assert "a" not in anew


def test_settings_are_the_same_in_any_order() -> None:
    leave_behind({"a": 1})
    with Journal("aa", "perplexity", dict(reversed(SETTINGS.items())), VERSIONS) as again:
        assert again.get_or_compute("a", never) == 1


@pytest.mark.parametrize("torn", ['["b", 2', '["b"', "[", '["b", 2]garbage', "7", "\0\0\0", "\xff\xfe"])
def test_a_torn_last_line_is_ignored_and_does_not_tear_the_next(torn: str) -> None:
    path = leave_behind({"a": 1})
    with path.open("ab") as file:
        file.write(torn.encode("latin-1"))
    with pytest.raises(Stopped), journal() as again:
        assert again.get_or_compute("a", never) == 1
        assert "b" not in again
        assert again.get_or_compute("b", lambda: 5) == 5
        raise Stopped
    with journal() as third:
        assert (third.get_or_compute("a", never), third.get_or_compute("b", never)) == (1, 5)


def test_a_piece_is_on_the_disk_when_it_is_told() -> None:
    with journal() as running:
        running.get_or_compute("a", lambda: 1)
        assert json.loads(running.path.read_text()) == ["a", 1]


def test_a_piece_that_fails_is_not_finished() -> None:
    with journal() as running:
        with pytest.raises(AssertionError):
            running.get_or_compute("a", never)
        assert "a" not in running
        assert running.get_or_compute("a", lambda: 2) == 2


def test_a_cache_that_cannot_be_written_says_where_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="file/pigguf/evals: Not a directory") as refusal:
        journal()
    assert "XDG_CACHE_HOME" in str(refusal.value.hint)
