"""`pigguf ask` as users run it: stdout and stderr, JSON, questions from a pipe and at a terminal, errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest
from support import sample_documents
from support.command_line import CommandResult
from support.tiny_chat import write_chat_model

TIMEOUT = 180  # seconds; the machine may be busy
READY = re.escape("\x1b[?2004h")  # what prompt_toolkit prints when it waits for a line
Run = Callable[..., CommandResult]
BRIEF = ("--max-tokens", "3")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use none of the user's own files, and leave none behind."""
    home = str(tmp_path_factory.mktemp("home"))
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setenv("XDG_STATE_HOME", home)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("models") / "tiny.gguf", 4096)


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.md").write_text("# Ferry\n\nThe ferry leaves at nine.\n")
    sample_documents.pdf(folder / "b.pdf", ["One.", "The password is 4711."])
    (folder / "c.png").write_bytes(b"\x89PNG\0")
    return folder


def test_the_answer_is_on_stdout_and_notes_are_on_stderr(run: Run, tiny: Path, notes: Path) -> None:
    result = run("ask", tiny, "--docs", notes, "When does the ferry leave?", *BRIEF)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("\n")
    assert "notes" not in result.stdout
    assert f"Skipped 1 file: {notes}/c.png (a PNG picture, not a document)." in result.stderr
    assert f"In the prompt: {notes}/a.md:1-3; {notes}/b.pdf, pages 1-2." in result.stderr
    assert "The answer names no passage" in result.stderr
    assert "prefill: " in result.stderr.splitlines()[-1]


def test_json_lists_what_is_in_the_prompt_and_skipped_files(run: Run, tiny: Path, notes: Path) -> None:
    question = "When does the ferry leave?"
    result = run("ask", tiny, "--docs", notes, question, "--json", "--show-context", *BRIEF)
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["question"] == question
    assert data["finish_reason"] == "length"
    assert data["citations"] == []
    assert data["passages"] == {"read": 2, "left_out": 0}
    ferry = {"file": f"{notes}/a.md", "unit": "line", "first": 1, "last": 3, "titles": []}
    pages = {"file": f"{notes}/b.pdf", "unit": "page", "first": 1, "last": 2, "titles": []}
    assert data["read"] == [ferry, pages]
    assert data["documents"] == [f"{notes}/a.md", f"{notes}/b.pdf"]
    assert data["files_left_out"] == [{"file": f"{notes}/c.png", "reason": "a PNG picture, not a document"}]
    assert data["context"] == [
        {"passage": 1, **ferry, "text": "# Ferry\n\nThe ferry leaves at nine."},
        {"passage": 2, **pages, "text": "One.\n\nThe password is 4711."},
    ]


def test_show_context_shows_the_passages_beside_the_answer(run: Run, tiny: Path, notes: Path) -> None:
    result = run("ask", tiny, "--docs", notes, "When?", "--show-context", *BRIEF)
    assert "[1] a.md:1-3\n# Ferry\n\nThe ferry leaves at nine.\n" in result.stderr
    assert "[2] b.pdf, pages 1-2\n" in result.stderr
    assert "ferry" not in result.stdout


def test_paths_may_follow_docs_as_a_shell_makes_them(run: Run, tiny: Path, notes: Path) -> None:
    result = run("ask", tiny, "--docs", notes / "a.md", notes / "b.pdf", "When?", "--json", *BRIEF)
    assert result.returncode == 0, result.stderr
    assert len(json.loads(result.stdout)["documents"]) == 2


def test_missing_passages_get_a_note(run: Run, tiny: Path, novel: str, tmp_path: Path) -> None:
    path = tmp_path / "novel.txt"
    path.write_text(novel)
    result = run("ask", tiny, "--docs", path, "Who is Captain Wentworth?", "--json", *BRIEF)
    data = json.loads(result.stdout)
    read, left_out = data["passages"]["read"], data["passages"]["left_out"]
    assert 0 < read < left_out
    assert (
        f"the prompt has the {read} of {read + left_out} passages that match the question best"
        in result.stderr
    )


def test_answers_are_greedy_by_default(run: Run, tiny: Path, notes: Path) -> None:
    arguments = ("ask", tiny, "--docs", notes / "a.md", "When?", "--max-tokens", "12")
    first, second = run(*arguments), run(*arguments)
    sampled = run(*arguments, "--temperature", "2", "--seed", "3")
    assert first.stdout == second.stdout != sampled.stdout


def piped(stdin: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pigguf", "ask", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=TIMEOUT,
        check=False,
    )


@pytest.mark.parametrize("dash", [(), ("-",)])
def test_piped_questions_are_one_per_line_and_share_the_prefill(
    tiny: Path, notes: Path, dash: tuple[str, ...]
) -> None:
    result = piped("When?\n\nAnd why?\n", tiny, "--docs", notes / "a.md", *dash, "--json", *BRIEF)
    assert result.returncode == 0, result.stderr
    decoder = json.JSONDecoder()
    first, end = decoder.raw_decode(result.stdout)
    second, _ = decoder.raw_decode(result.stdout[end:].lstrip())
    assert [first["question"], second["question"]] == ["When?", "And why?"]
    assert second["tokens"]["prompt"] > first["tokens"]["prompt"]


def test_a_pipe_without_a_question_is_refused(tiny: Path, notes: Path) -> None:
    result = piped("\n", tiny, "--docs", notes / "a.md")
    assert result.returncode == 2
    assert result.stderr.splitlines()[0] == "error: no question given"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["When?"], 2, "Missing option '--docs'"),
        (["--docs", "missing.txt", "When?"], 6, "missing.txt: No such file"),
        (["--docs", "NOTES/c.png", "When?"], 11, "is a PNG picture, not a document"),
        (["--docs", "NOTES/a.md", "does", "it?"], 2, "neither 'does' nor 'it?' is a file"),
        (["--docs", "NOTES/a.md", " "], 2, "the question is empty"),
        (["--docs", "NOTES/empty", "When?"], 11, "holds no files"),
        (["--docs", "NOTES/a.md", "When?", "--ctx", "9000"], 10, "9,000 tokens is longer than the 4,096"),
        (["--docs", "NOTES/a.md", "When? " * 700], 10, "too few for a passage"),
    ],
)
def test_refusals(run: Run, tiny: Path, notes: Path, arguments: list[str], code: int, message: str) -> None:
    (notes / "empty").mkdir()
    result = run("ask", tiny, *(argument.replace("NOTES", str(notes)) for argument in arguments))
    assert result.returncode == code, result.stderr
    error = next(line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert message in error
    assert result.stdout == ""


def test_at_a_terminal_it_is_a_conversation(tiny: Path, notes: Path) -> None:
    command = ["-m", "pigguf", "ask", str(tiny), "--docs", str(notes / "a.md"), "--max-tokens", "3"]
    child = pexpect.spawn(
        sys.executable,
        command,
        timeout=TIMEOUT,
        encoding="utf-8",
        codec_errors="replace",
        env={**os.environ, "PROMPT_TOOLKIT_NO_CPR": "1"},
    )
    for question in ("When?", "And why?"):
        child.expect(READY)
        child.sendline(question)
        child.expect(r"In the prompt: .*a\.md:1-3")
    child.expect(READY)
    child.sendline("/ctx")
    child.expect("ferry leaves at nine")
    child.expect(READY)
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


@pytest.mark.slow
def test_the_real_model_s_answer_is_cited_to_the_line(
    run: Run, smollm2_gguf: Path, novel: str, tmp_path: Path
) -> None:
    lines = novel.split("\n")
    lines.insert(399, "The password of the lighthouse is 4711.")
    path = tmp_path / "novel.txt"
    path.write_text("\n".join(lines))
    question = "What is the password of the lighthouse?"
    result = run("ask", smollm2_gguf, "--docs", path, question, "--ctx", "2048", "--max-tokens", "40")
    assert result.returncode == 0, result.stderr
    assert "4711" in result.stdout
    assert f"{path}:400 “The password of the lighthouse is 4711”" in result.stdout


def test_an_answer_with_a_schema_is_alone_on_stdout(run: Run, tiny: Path, notes: Path) -> None:
    schema = json.dumps({"type": "array", "items": {"const": "[1]"}, "minItems": 1, "maxItems": 2})
    result = run("ask", tiny, "--docs", notes, "When does the ferry leave?", "--json-schema", schema)
    assert result.returncode == 0, result.stderr
    assert set(json.loads(result.stdout)) == {"[1]"}
    assert f"[1] {notes}/a.md:1-3" in result.stderr
