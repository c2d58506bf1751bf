"""`pigguf summarize`: one pass or map-reduce, reported on stderr and in JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support import sample_documents
from support.command_line import CommandResult
from support.tiny_chat import write_chat_model

Run = Callable[..., CommandResult]


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("models") / "tiny.gguf", 4096)


def test_a_document_that_fits_is_summarized_in_one_pass(run: Run, tiny: Path, tmp_path: Path) -> None:
    path = sample_documents.pdf(tmp_path / "report.pdf", ["One.", "Two."])
    result = run("summarize", tiny, path, "--length", "5", "--style", "bullets")
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("\n")
    assert len(result.stdout) > 1
    assert result.stderr.startswith(f"{path}, pages 1-2, in one pass.")


def test_a_long_document_is_summarized_in_parts(run: Run, tiny: Path, novel: str, tmp_path: Path) -> None:
    path = tmp_path / "novel.txt"
    path.write_text(novel[:12_000])
    result = run("summarize", tiny, path, "--length", "20", "--json", "--max-tokens", "7")
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["file"] == str(path)
    assert data["finish_reason"] == "length"
    assert data["summary"]
    parts = data["parts"]
    assert len(parts) > 3
    assert data["passes"] > len(parts)
    assert (parts[0]["first"], parts[0]["unit"]) == (1, "line")
    assert all(part["summary"] and part["file"] == str(path) for part in parts)
    assert f"it is summarized in {len(parts)} parts" in result.stderr
    text = run("summarize", tiny, path, "--length", "20", "--max-tokens", "7")
    assert text.stdout.rstrip("\n") == data["summary"].rstrip("\n")
    assert f"{data['passes']} passes over {len(parts)} parts (cut off: " in text.stderr
    assert f"\n  {path}:{parts[-1]['first']}-{parts[-1]['last']}\n" in text.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing.txt"], 6, "missing.txt: No such file"),
        (["bad.pdf"], 11, "is damaged, or is not a PDF"),
        (["a.txt", "--length", "huge"], 2, "'huge' is not short, medium, long or a number of words"),
        (["a.txt", "--length", "0"], 2, "'0' is not short"),
        (["a.txt", "--style", "verse"], 2, "'verse' is not one of"),
        (["a.txt", "--ctx", "100"], 10, "100 tokens is too small for a summary"),
        (["."], 11, "is not a regular file"),
    ],
)
def test_refusals(
    run: Run,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    (tmp_path / "a.txt").write_text("Text.")
    (tmp_path / "bad.pdf").write_text("Text.")
    monkeypatch.chdir(tmp_path)
    result = run("summarize", tiny, *arguments)
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert result.stdout == ""
