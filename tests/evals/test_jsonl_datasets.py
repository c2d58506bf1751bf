"""Data sets in JSON lines: files and lines that are not valid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pigguf.errors import ReadError, TextError, UsageError
from pigguf.evals.jsonl_datasets import load_datasets
from pigguf.evals.multiple_choice_formats import parse_question


def write(path: Path, *lines: Any) -> Path:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


BOOLQ = {"question": "is water wet", "passage": "Water is wet.", "answer": True}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{'a': 1}"], "line 1 is not JSON"),
        ([BOOLQ, "", "[1, 2]"], r"line 3 is \[1, 2\]"),
        ([BOOLQ, '"text"'], 'line 2 is "text"'),
        (["", "  "], "holds no records"),
        (["[" * 100_000], "line 1 is not JSON"),
    ],
)
def test_a_file_that_is_not_json_lines_is_an_error(tmp_path: Path, lines: list[Any], message: str) -> None:
    with pytest.raises(TextError, match=f"bad.jsonl,? {message}"):
        load_datasets([write(tmp_path / "bad.jsonl", *lines)], parse_question)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"none\.jsonl"):
        load_datasets([tmp_path / "none.jsonl"], parse_question)
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UsageError, match="not UTF-8"):
        load_datasets([tmp_path / "bytes.jsonl"], parse_question)
    for nothing in ([], "boolq.jsonl"):
        with pytest.raises(UsageError, match="data sets are"):
            load_datasets(nothing, parse_question)
