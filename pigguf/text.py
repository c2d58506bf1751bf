"""Tokens to text while they are drawn."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator

from pigguf.engine import Model


def characters(model: Model, tokens: Iterable[int]) -> Iterator[str]:
    """The text of each token as it comes, "" where it only begins a character.

    A character's bytes may be spread over tokens: it comes whole, with the last of them. Bytes that are
    no UTF-8 become U+FFFD.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        yield decoder.decode(model.piece(token))
    if rest := decoder.decode(b"", final=True):
        yield rest
