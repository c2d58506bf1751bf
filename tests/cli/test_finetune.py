"""`pigguf finetune` as a person meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny_checkpoints import make_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("source") / "toy")


@pytest.fixture
def books(tmp_path: Path, novel: str) -> Path:
    directory = tmp_path / "books"
    directory.mkdir()
    (directory / "novel.txt").write_text(novel[:40_000], encoding="utf-8")
    (directory / "questions.jsonl").write_text(
        json.dumps({"prompt": "The pass key is", "completion": " 12345."}) + "\n"
    )
    (directory / "notes.md").write_text("not text to train on")
    return directory


def pigguf(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [str(argument) for argument in arguments]
    return subprocess.run(
        [sys.executable, "-m", "pigguf", *words], capture_output=True, text=True, check=False, timeout=300
    )


SHORT = ("--factor", 4, "--rank", 2, "--steps", 3, "--batch", 2, "--held-out", 3, "--dtype", "f32")


def test_an_adapter_is_made_of_a_folder_of_text_and_converts(
    checkpoint: Path, books: Path, tmp_path: Path
) -> None:
    out = tmp_path / "adapter"
    made = pigguf("finetune", checkpoint, *SHORT, "--train", "norms", "--text", books, "-o", out)
    assert made.returncode == 0, made.stderr
    assert "step 0 of 3; held out: text " in made.stderr
    assert "step 3 of 3; loss " in made.stderr
    assert "256 tokens" in made.stdout
    assert f"pigguf convert {checkpoint} --adapter {out}" in made.stdout
    gguf = tmp_path / "toy.gguf"
    converted = pigguf("convert", checkpoint, "--adapter", out, "--type", "F32", "-o", gguf, "--json")
    assert converted.returncode == 0, converted.stderr
    assert json.loads(converted.stdout)["rope"]["factor"] == 4
    assert json.loads(converted.stdout)["rope"]["context_length"] == 256


def test_json_and_several_files_after_text(checkpoint: Path, books: Path, tmp_path: Path) -> None:
    files = sorted(books.glob("*[tl]"))
    made = pigguf("finetune", checkpoint, *SHORT, "-o", tmp_path / "out", "--json", "--text", *files)
    assert made.returncode == 0, made.stderr
    result = json.loads(made.stdout)
    assert [line["step"] for line in result["steps"]] == [0, 1, 2, 3]
    assert result["steps"][1]["perplexity"] > 1
    assert result["rope"]["original_context_length"] == 64
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert lines == result["steps"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--factor", "1"), 2, "--factor"),
        (("--factor", "4", "--text", "nowhere.txt"), 6, "nowhere.txt"),
        (("--factor", "4", "--device", "tpu0"), 2, "tpu0"),
        (("--factor", "4", "--sequence-length", "64"), 2, "--position-skipping"),
        (("--factor", "4000"), 11, "a sequence takes 256,000"),
    ],
)
def test_bad_input_is_a_clear_error(
    arguments: tuple[str, ...], code: int, words: str, checkpoint: Path, books: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    text = () if "--text" in arguments else ("--text", books / "novel.txt")
    made = pigguf("finetune", checkpoint, *arguments, *text, "-o", out)
    assert made.returncode == code, made.stderr
    assert words in made.stderr
    assert "Traceback" not in made.stderr
    assert made.stdout == ""
    assert not out.exists()


def test_a_folder_without_text(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    made = pigguf("finetune", checkpoint, "--factor", 4, "--text", tmp_path / "empty", "-o", tmp_path / "out")
    assert made.returncode == 11
    assert "holds no .txt or .jsonl file" in made.stderr


def test_without_the_extra_the_hint_is_how_to_install_it(
    checkpoint: Path, books: Path, tmp_path: Path
) -> None:
    hidden = (
        "import sys, importlib.util as util; find = util.find_spec;"
        "util.find_spec = lambda name, *rest: None if name == 'peft' else find(name, *rest);"
        "import pigguf.cli; pigguf.cli.main(sys.argv[1:])"
    )
    made = subprocess.run(
        [
            *(sys.executable, "-c", hidden, "finetune", checkpoint, "--factor", "4"),
            *("--text", books, "-o", tmp_path / "out"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 13
    assert 'pip install -e ".[finetune]" in the clone' in made.stderr
