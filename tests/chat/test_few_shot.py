"""Few-shot example files: what they contain, and what is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pigguf.chat.few_shot import FewShotExample, example_messages, read_examples
from pigguf.errors import PigError


def test_examples_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.write_text('{"user": "a", "assistant": "b"}\n\n{"assistant": "d\u00e9", "user": "c\\n"}')
    examples = read_examples(path)
    assert examples == [FewShotExample("a", "b"), FewShotExample("c\n", "d\u00e9")]
    assert example_messages(examples)[2:] == [
        {"role": "user", "content": "c\n"},
        {"role": "assistant", "content": "d\u00e9"},
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"user": "a", "assistant": "b"}\n{"user": "a"}', "line 2 has 'user'"),
        (b'{"user": "a", "assistant": "b", "system": "c"}', "line 1 has 'user', 'assistant', 'system'"),
        (b"{}", "line 1 has no keys"),
        (b'{"user": "a", "assistant": 4}', "line 1: assistant is 4"),
        (b'{"user": " ", "assistant": "b"}', 'line 1: user is " "'),
        (b'["a", "b"]', "line 1 is"),
        (b"a", "line 1 is not JSON"),
        (b"\xff", "not UTF-8"),
        (b"\n", "has no examples"),
    ],
)
def test_invalid_lines_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "e.jsonl"
    path.write_bytes(data)
    with pytest.raises(PigError, match=message) as error:
        read_examples(path)
    assert "e.jsonl" in error.value.message
    with pytest.raises(PigError, match="No such file"):
        read_examples(tmp_path / "missing.jsonl")
