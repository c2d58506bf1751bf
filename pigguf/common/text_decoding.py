"""The text of documents, and the objects of JSON lines, or an error that names the place.

Left out: opening files, which callers bound in their own ways.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pigguf.errors import TextError, UsageError


def decode_text(data: bytes, name: str) -> str:
    """Bytes as the UTF-8 text they must be.

    Raises:
        UsageError: they are none; the message names the first byte that is wrong.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is not UTF-8 text (byte {error.start:,})",
            "take out its text first, for example with pdftotext, or convert it with iconv",
        ) from error
    if "\0" in text:
        raise UsageError(f"{name} is not text: it holds null bytes", "take out its text first")
    return text.replace("\r\n", "\n")


def json_lines(text: str, name: str, form: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each line's number, from 1 on, and its object; blank lines are passed over.

    Lines end at line feeds alone: U+2028 and its like may stand inside a JSON string.

    Args:
        name: what an error calls the text.
        form: the hint of an error: what a line should be.

    Raises:
        TextError: a line is no JSON object.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TextError(f"{name}, line {number} is not JSON: {error}", form) from error
        if not isinstance(values, dict):
            raise TextError(f"{name}, line {number} is {shown(values)}", form)
        yield number, values


def shown(value: Any) -> str:
    """A JSON value as an error shows it: not more than its beginning."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:60] + "..."
