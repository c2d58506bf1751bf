"""The journal: finished items survive a killed process, and are only found by the same evaluation."""

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


def interrupted_journal(items: dict[str, Any]) -> Path:
    """Write a journal like an evaluation that was interrupted after these items, and return its path."""
    with pytest.raises(Stopped), journal() as left:
        for key, value in items.items():
            left.get_or_compute(key, lambda value=value: value)
        raise Stopped
    return left.path


def test_an_item_is_computed_once_and_read_back_unchanged() -> None:
    values = {"a": [1.1, 2**-1074, -1e300], "b": {"text": 'line\nend"', "none": None}, "c/1": 3}
    interrupted_journal(values)
    with journal() as again:
        assert {key: again.get_or_compute(key, never) for key in values} == values
        assert {key: again[key] for key in values} == values
        assert "d" not in again


def test_a_first_run_gets_the_same_values_as_a_resumed_one() -> None:
    with journal() as first:
        assert first.get_or_compute("pair", lambda: (1, 2)) == [1, 2]


def test_it_is_deleted_when_the_evaluation_is_done(cache: Path) -> None:
    path = interrupted_journal({"a": 1})
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
def test_any_other_evaluation_has_its_own_journal(other: Callable[[], Journal]) -> None:
    interrupted_journal({"a": 1})
    with other() as new:
        assert "a" not in new


def test_settings_are_the_same_in_any_order() -> None:
    interrupted_journal({"a": 1})
    with Journal("aa", "perplexity", dict(reversed(SETTINGS.items())), VERSIONS) as again:
        assert again.get_or_compute("a", never) == 1


@pytest.mark.parametrize("truncated", ['["b", 2', '["b"', "[", '["b", 2]garbage', "7", "\0\0\0", "\xff\xfe"])
def test_a_truncated_last_line_is_ignored_and_does_not_damage_the_next(truncated: str) -> None:
    path = interrupted_journal({"a": 1})
    with path.open("ab") as file:
        file.write(truncated.encode("latin-1"))
    with pytest.raises(Stopped), journal() as again:
        assert again.get_or_compute("a", never) == 1
        assert "b" not in again
        assert again.get_or_compute("b", lambda: 5) == 5
        raise Stopped
    with journal() as third:
        assert (third.get_or_compute("a", never), third.get_or_compute("b", never)) == (1, 5)


def test_an_item_is_on_disk_when_its_value_is_returned() -> None:
    with journal() as running:
        running.get_or_compute("a", lambda: 1)
        assert json.loads(running.path.read_text()) == ["a", 1]


def test_an_item_that_fails_is_not_finished() -> None:
    with journal() as running:
        with pytest.raises(AssertionError):
            running.get_or_compute("a", never)
        assert "a" not in running
        assert running.get_or_compute("a", lambda: 2) == 2


def test_an_unwritable_cache_is_an_error_with_its_path_and_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="file/pigguf/evals: Not a directory") as refusal:
        journal()
    assert "XDG_CACHE_HOME" in str(refusal.value.hint)
