"""Where a source's tokenizer and llama.cpp are known to differ, and texts that keep clear of it.

A difference stands here only where it concerns few texts, changes no text's meaning (the tokens are
other ones of the same text) and has no name in llama.cpp that avoids it. It is said in Vocab.notes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Final


class Limit(Enum):
    """What the source's tokenizer does to a text and llama.cpp cannot."""

    NFC = (
        "the source's tokenizer brings text to the normal form NFC and llama.cpp does not: "
        "text in another form becomes other tokens"
    )
    SPACE_PREFIX = (
        "llama.cpp puts a space before the text's beginning and after every special token; the source's "
        "tokenizer only before the beginning, and not where a space is already"
    )
    LETTER_CASE = (
        "llama.cpp tells capital letters from small ones only among A-Z under these rules: "
        "words in capitals with accents (ÉTAT) become other tokens of the same text"
    )
    MARKS = (
        "llama.cpp parts a letter from the marks on it under these rules: text in scripts that are written "
        "with marks (Hindi, Tamil, Thai ...) becomes other tokens of the same text"
    )
    MIXED_SPACES = (
        "llama.cpp takes every Unicode space for one and the same under these rules: an ideographic space "
        "(U+3000) after another space becomes other tokens"
    )
    SPACE_TOKENS = (
        "the vocabulary has tokens for runs of spaces, which llama.cpp finds in spaces alone: "
        "a literal ▁ in a text becomes other tokens"
    )
    STRIPPED_END = "llama.cpp takes away the white space after </s>, which the source's tokenizer keeps"


def kept_clear(texts: Iterable[str], limits: Iterable[Limit]) -> tuple[str, ...]:
    """The texts without what the limits are about."""
    for limit in limits:
        texts = map(_CLEAR[limit], texts)
    return tuple(texts)


def _small_letters(text: str) -> str:
    """Without capitals beyond A-Z; those that have no small letter (𝐋) are left out."""
    return "".join(map(_small_letter, text))


def _small_letter(character: str) -> str:
    if character.isascii() or unicodedata.category(character) not in ("Lu", "Lt"):
        return character
    small = character.lower()
    return small if small != character else ""


def _without_marks(text: str) -> str:
    return "".join(c for c in text if not unicodedata.category(c).startswith("M"))


_CLEAR: Final[Mapping[Limit, Callable[[str], str]]] = {
    Limit.NFC: lambda text: unicodedata.normalize("NFC", text),
    Limit.SPACE_PREFIX: lambda text: text.lstrip(" ▁"),
    Limit.LETTER_CASE: _small_letters,
    Limit.MARKS: _without_marks,
    Limit.MIXED_SPACES: lambda text: re.sub(r"(?<=\s)\u3000", "", text),
    Limit.SPACE_TOKENS: lambda text: text.replace("▁", "_"),
    Limit.STRIPPED_END: lambda text: re.sub(r"(?<=</s>)\s+", "", text),
}
