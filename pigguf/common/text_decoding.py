"""Decoding of UTF-8 text and of JSON lines, with errors that name the byte or the line.

Not here: opening files, whose size each caller limits in its own way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pigguf.errors import TextError, UsageError


def decode_text(data: bytes, name: str) -> str:
    """Decode UTF-8 text.

    Raises:
        UsageError: it is not UTF-8 text; the message names the first invalid byte.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is not UTF-8 text (byte {error.start:,})",
            "extract its text first, for example with pdftotext, or convert it with iconv",
        ) from error
    if "\0" in text:
        raise UsageError(f"{name} is not text: it contains null bytes", "extract its text first")
    return text.replace("\r\n", "\n")


def parse_json_lines(text: str, name: str, expected: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each line's number, from 1 on, and its object; blank lines are skipped.

    Only line feeds end a line: U+2028 and the like may occur in a JSON string.

    Args:
        text: the JSON lines.
        name: the name of the text in error messages.
        expected: the hint of error messages: what a line should be.

    Raises:
        TextError: a line is not a JSON object.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TextError(f"{name}, line {number} is not JSON: {error}", expected) from error
        if not isinstance(values, dict):
            raise TextError(f"{name}, line {number} is {preview_json_value(values)}", expected)
        yield number, values


def preview_json_value(value: Any) -> str:
    """Format a value as JSON, cut after 60 characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:60] + "..."
