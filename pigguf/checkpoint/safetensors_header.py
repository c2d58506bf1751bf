"""Parse the JSON header of a safetensors file one member at a time.

Parsed as a whole, a header of a hundred megabytes of brackets would become gigabytes of lists. A header has
only two kinds of members, {"NAME": {"dtype": ..., "shape": [...], "data_offsets": [...]}} and __metadata__,
whose values are strings. So each member is cut out and parsed by itself, and one that is longer than such a
member can be is an error.

Not here: what the entries mean (safetensors_file.py).
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

METADATA = "__metadata__"
MAX_NAME, MAX_ENTRY, MAX_METADATA = 1_000, 10_000, 10_000_000  # characters
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def parse_header(raw: bytes | bytearray) -> Iterator[tuple[str, Any]]:
    """Yield the name and the entry of every tensor, in order, without __metadata__.

    Args:
        raw: the header, UTF-8.

    Raises:
        ValueError: it is not such a JSON object; the message continues "invalid safetensors header: ".
        RecursionError: an entry is nested too deeply.
    """
    text = raw.decode("latin-1")  # one character per byte; JSON's structure is ASCII in UTF-8 too
    pos = _expect(text, 0, "{", "it is not an object")
    has_member = text[pos : pos + 1] != "}"
    while has_member:
        end = _string_end(text, pos)
        name = _parse_name(text[pos:end])
        pos = _expect(text, end, ":")
        if name == METADATA:
            end = _metadata_end(text, pos)
        else:
            end = text.find("}", pos, pos + MAX_ENTRY) + 1
            yield name, _parse_entry(name, text[pos:end])
        pos = _skip_space(text, end)
        has_member = text[pos : pos + 1] == ","
        pos = _skip_space(text, pos + has_member)
    if _expect(text, pos, "}") != len(text):
        raise ValueError("it is not JSON: there is text after the object")


def _skip_space(text: str, pos: int) -> int:
    return _SPACE.match(text, pos).end()  # type: ignore[union-attr]


def _expect(text: str, pos: int, character: str, error: str = "") -> int:
    """Return the position after a character that must come next, and the space around it."""
    pos = _skip_space(text, pos)
    if text[pos : pos + 1] != character:
        raise ValueError(error or f"it is not JSON: expected {character!r} at character {pos}")
    return _skip_space(text, pos + 1)


def _string_end(text: str, pos: int) -> int:
    if text[pos : pos + 1] != '"':
        raise ValueError(f"it is not JSON: expected a string at character {pos}")
    return _DECODER.raw_decode(text, pos)[1]


def _metadata_end(text: str, pos: int) -> int:
    """Return the end of __metadata__, an object whose values are strings."""
    begin = pos
    pos = _expect(text, pos, "{", f"{METADATA} is not an object")
    while text[pos : pos + 1] != "}":
        pos = _expect(text, _string_end(text, pos), ":")
        pos = _skip_space(text, _string_end(text, pos))
        if text[pos : pos + 1] != "}":
            pos = _expect(text, pos, ",")
        if pos > begin + MAX_METADATA:
            raise ValueError(f"{METADATA} has more than {MAX_METADATA} characters")
    return pos + 1


def _parse_name(quoted: str) -> str:
    name: str = json.loads(quoted.encode("latin-1"))
    if len(name) > MAX_NAME or not name.isprintable():
        raise ValueError(f"{name[:100]!a} is not a valid tensor name")
    return name


def _parse_entry(name: str, entry: str) -> Any:
    if not entry.startswith("{"):
        raise ValueError(f"the entry of {name} is not an object of fewer than {MAX_ENTRY} characters")
    return json.loads(
        entry.encode("latin-1"), object_pairs_hook=lambda pairs: _reject_duplicate_keys(name, pairs)
    )


def _reject_duplicate_keys(name: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entry = dict(pairs)
    if len(entry) < len(pairs):
        raise ValueError(f"the entry of {name} has a duplicate key")
    return entry
