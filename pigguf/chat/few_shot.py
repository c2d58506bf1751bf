"""Examples of questions and their answers, to put in front of a question (few-shot).

{"user": "2 + 2", "assistant": "4"}      one a line
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pigguf.common.text_decoding import decode_text, parse_json_lines, format_json_value
from pigguf.errors import TextError, UsageError

_FORM = '{"user": "a question", "assistant": "its answer"} on each line'


class FewShotExample(NamedTuple):
    """A question and its answer."""

    user: str
    assistant: str

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": role, "content": text} for role, text in self._asdict().items()]


def read_examples(path: str | Path) -> list[FewShotExample]:
    """The examples of a file of JSON lines.

    Raises:
        UsageError: there is no such file, it is not text, or it has none.
        TextError: a line is no example.
    """
    try:
        text = decode_text(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    examples = [_example(values, f"{path}, line {n}") for n, values in parse_json_lines(text, str(path), _FORM)]
    if not examples:
        raise UsageError(f"{path} has no examples", _FORM)
    return examples


def _example(values: dict[str, object], place: str) -> FewShotExample:
    if values.keys() != set(FewShotExample._fields):
        raise TextError(f"{place} has {', '.join(map(repr, values)) or 'no keys'}", _FORM)
    for key, text in values.items():
        if not isinstance(text, str) or not text.strip():
            raise TextError(f"{place}: {key} is {format_json_value(text)}", _FORM)
    return FewShotExample(**values)  # type: ignore[arg-type]


def example_messages(examples: Sequence[FewShotExample]) -> list[dict[str, str]]:
    """The examples as turns of a conversation."""
    return [message for example in examples for message in example.messages]
