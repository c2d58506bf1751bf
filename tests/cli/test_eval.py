"""`pigguf eval`: figures on stdout, pages where asked for, refusals before the work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny_checkpoints import make_checkpoint

import pigguf
from pigguf.cli.eval import EVALUATIONS
from pigguf.evals import EVALUATIONS as IN_LIBRARY


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    make_checkpoint(path / "checkpoint", max_position_embeddings=128)
    pigguf.convert(path / "checkpoint", path / "tiny.gguf", type="F16")
    return path / "tiny.gguf"


@pytest.fixture
def text(novel: str, tmp_path: Path) -> Path:
    path = tmp_path / "novel.txt"
    path.write_text(novel[:300], encoding="utf-8")
    return path


def run(tmp_path: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pigguf", "eval", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )


def test_the_list_of_evaluations_is_that_of_the_library(tmp_path: Path) -> None:
    assert list(EVALUATIONS) == list(IN_LIBRARY)
    listed = run(tmp_path)
    assert listed.returncode == 0
    for name, (_, description) in EVALUATIONS.items():
        assert f"  {name} " in listed.stdout
        assert description in listed.stdout
    assert run(tmp_path, "--help").stdout == listed.stdout


@pytest.mark.parametrize("name", EVALUATIONS)
def test_every_evaluation_has_help_with_an_example(name: str, tmp_path: Path) -> None:
    result = run(tmp_path, name, "--help")
    assert result.returncode == 0, result.stderr
    assert f"pigguf eval {name} " in result.stdout.split("\n", 1)[1], "no example"
    for option in ("--json", "--html", "--gpu-layers", "--threads", "--cache-type"):
        assert option in result.stdout


def test_results_are_tables_on_stdout(model: Path, text: Path, tmp_path: Path) -> None:
    result = run(tmp_path, "perplexity", model, "--text", text, "--windows", "32,64", "--compare", "none")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "Perplexity by window (half-window)"
    assert lines[1].split() == ["positions", "32", "64"]
    assert lines[2].startswith("as shipped ")
    assert lines[3].startswith("none ")
    assert lines[2].split()[2:] == lines[3].split()[1:]  # an unscaled model
    assert "Intervals of 95 %" in lines[5]


def test_with_json_stdout_has_only_json(model: Path, text: Path, tmp_path: Path) -> None:
    options = ("--windows", "64", "--cache-type", "f32", "--threads", "1", "--gpu-layers", "0")
    result = run(tmp_path, "perplexity", model, "--text", text, "--json", *options)
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["evaluation"] == "perplexity"
    assert data["settings"]["cache_type"] == "f32"
    assert data["settings"]["gpu_layers"] == 0
    assert data["results"]["perplexity"][0]["perplexity"] > 1


def test_a_page_is_written_beside_the_tables(model: Path, text: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = run(tmp_path, "perplexity", model, "--text", text, "--windows", "64", "--html", page)
    assert result.returncode == 0, result.stderr
    assert "Perplexity by window" in result.stdout
    written = page.read_text(encoding="utf-8")
    assert written.lower().startswith("<!doctype html>")
    assert "<svg" in written
    assert str(page) in result.stderr


def test_a_page_that_cannot_be_written_is_refused_before_the_work(
    model: Path, text: Path, tmp_path: Path
) -> None:
    page = tmp_path / "nowhere" / "page.html"
    result = run(tmp_path, "perplexity", model, "--text", text, "--windows", "64", "--html", page)
    assert result.returncode == 6
    assert "nowhere is not a directory" in result.stderr
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--windows", "64,x"], 2, "'64,x' is not a comma-separated list of numbers of tokens"),
        (["--windows", "256"], 10, "256 tokens is beyond the 128"),
        (["--windows", "64", "--max-tokens", "10"], 2, "first 10 tokens of a text do not fill"),
        (["--windows", "4096", "--compare", "none"], 11, "tokens; a window of 4,096 needs as many"),
        (["--windows", "64", "--cache-type", "q9"], 2, "--cache-type"),
    ],
)
def test_errors_are_a_line_a_hint_and_an_exit_code(
    arguments: list[str], code: int, expected: str, model: Path, text: Path, tmp_path: Path
) -> None:
    result = run(tmp_path, "perplexity", model, "--text", text, *arguments)
    assert (result.returncode, result.stdout) == (code, "")
    error, hint = result.stderr.splitlines()[-2:]
    assert expected in error
    assert hint.startswith("hint: ")
