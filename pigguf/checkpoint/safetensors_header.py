"""The JSON header of a safetensors file, read member by member.

Read as a whole, a hundred megabytes of brackets would become gigabytes of lists. A header has but two
kinds of members, {"NAME": {"dtype": ..., "shape": [...], "data_offsets": [...]}} and __metadata__, whose
values are texts; so each is cut out and read alone, and what is longer than such a member can be is none.

Format: https://github.com/huggingface/safetensors#format. Left out: what an entry says (safetensors_file.py).
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


def header_members(raw: bytes | bytearray) -> Iterator[tuple[str, Any]]:
    """The name and the description of every tensor, in order; __metadata__ is left out.

    Raises:
        ValueError: it is no such JSON object; the message goes on from "the header lies: ".
        RecursionError: a description is nested too deeply.
    """
    text = raw.decode("latin-1")  # a character a byte; what counts as structure is ASCII in UTF-8 too
    at = _after(text, 0, "{", "it is not an object")
    more = text[at : at + 1] != "}"
    while more:
        end = _string_end(text, at)
        name = _name(text[at:end])
        at = _after(text, end, ":")
        if name == METADATA:
            end = _texts_end(text, at)
        else:
            end = text.find("}", at, at + MAX_ENTRY) + 1
            yield name, _description(name, text[at:end])
        at = _skip(text, end)
        more = text[at : at + 1] == ","
        at = _skip(text, at + more)
    if _after(text, at, "}") != len(text):
        raise ValueError("it is not JSON: something follows the object")


def _skip(text: str, at: int) -> int:
    """Where the next thing begins, after space."""
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]


def _after(text: str, at: int, mark: str, otherwise: str = "") -> int:
    """Where the next thing begins after a mark that must be here."""
    at = _skip(text, at)
    if text[at : at + 1] != mark:
        raise ValueError(otherwise or f"it is not JSON: no {mark!r} at its character {at}")
    return _skip(text, at + 1)


def _string_end(text: str, at: int) -> int:
    if text[at : at + 1] != '"':
        raise ValueError(f"it is not JSON: no text at its character {at}")
    return _DECODER.raw_decode(text, at)[1]


def _texts_end(text: str, at: int) -> int:
    """Where an object of texts ends."""
    begin = at
    at = _after(text, at, "{", f"{METADATA} is not an object")
    while text[at : at + 1] != "}":
        at = _after(text, _string_end(text, at), ":")
        at = _skip(text, _string_end(text, at))
        if text[at : at + 1] != "}":
            at = _after(text, at, ",")
        if at > begin + MAX_METADATA:
            raise ValueError(f"{METADATA} has more than {MAX_METADATA} characters")
    return at + 1


def _name(quoted: str) -> str:
    name: str = json.loads(quoted.encode("latin-1"))
    if len(name) > MAX_NAME or not name.isprintable():
        raise ValueError(f"{name[:100]!a} is no name of a tensor")
    return name


def _description(name: str, entry: str) -> Any:
    if not entry.startswith("{"):
        raise ValueError(f"{name} is described by no object of fewer than {MAX_ENTRY} characters")
    return json.loads(entry.encode("latin-1"), object_pairs_hook=lambda pairs: _without_twins(name, pairs))


def _without_twins(name: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(f"{name} is described with a key twice")
    return content
