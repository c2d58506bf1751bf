"""Few-shot examples: questions with their answers that go before the first question of a conversation.

{"user": "2 + 2", "assistant": "4"}      # one example a line
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pigguf.common.text_decoding import decode_text, parse_json_lines, preview_json_value
from pigguf.errors import TextError, UsageError

_LINE_FORMAT = '{"user": "a question", "assistant": "its answer"} on each line'


class FewShotExample(NamedTuple):
    """A question and its answer."""

    user: str
    assistant: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The example as chat messages."""
        return [{"role": role, "content": text} for role, text in self._asdict().items()]


def read_examples(path: str | Path) -> list[FewShotExample]:
    """Read examples from a JSON Lines file.

    Raises:
        UsageError: the file does not exist, is not text, or has no examples.
        TextError: a line is not an example.
    """
    try:
        text = decode_text(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    examples = [
        _parse_example(values, f"{path}, line {number}")
        for number, values in parse_json_lines(text, str(path), _LINE_FORMAT)
    ]
    if not examples:
        raise UsageError(f"{path} has no examples", _LINE_FORMAT)
    return examples


def _parse_example(values: dict[str, object], location: str) -> FewShotExample:
    if values.keys() != set(FewShotExample._fields):
        raise TextError(f"{location} has {', '.join(map(repr, values)) or 'no keys'}", _LINE_FORMAT)
    for key, text in values.items():
        if not isinstance(text, str) or not text.strip():
            raise TextError(f"{location}: {key} is {preview_json_value(text)}", _LINE_FORMAT)
    return FewShotExample(**values)  # type: ignore[arg-type]


def example_messages(examples: Sequence[FewShotExample]) -> list[dict[str, str]]:
    """Return examples as chat messages, a question and an answer for each."""
    return [message for example in examples for message in example.messages]
