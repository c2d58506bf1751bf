"""Known differences between tokenizers and llama.cpp's version of them, and how to remove them from texts.

A difference is listed here only if it concerns few texts, does not change a text's meaning (other tokens of
the same text), and no name in llama.cpp avoids it. Vocab.notes reports it to the user.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Final


class TokenizerDifference(Enum):
    """Something that the source's tokenizer does to a text and llama.cpp does not.

    The value is the sentence for users.
    """

    NFC = (
        "the source's tokenizer normalizes text to NFC and llama.cpp does not: "
        "text in another normal form becomes other tokens"
    )
    SPACE_PREFIX = (
        "llama.cpp puts a space before the beginning of a text and after every special token; the source's "
        "tokenizer only before the beginning, and not if there is a space already"
    )
    LETTER_CASE = (
        "llama.cpp distinguishes capital and small letters only in A-Z under these rules: "
        "words in capitals with accents (ÉTAT) become other tokens of the same text"
    )
    COMBINING_MARKS = (
        "llama.cpp splits a letter from its combining marks under these rules: text in scripts that use "
        "them (Hindi, Tamil, Thai ...) becomes other tokens of the same text"
    )
    MIXED_SPACES = (
        "llama.cpp treats all Unicode spaces alike under these rules: an ideographic space "
        "(U+3000) after another space becomes other tokens"
    )
    SPACE_TOKENS = (
        "the vocabulary has tokens for runs of spaces, which llama.cpp matches only in spaces: "
        "a literal ▁ in a text becomes other tokens"
    )
    EOS_RSTRIP = "llama.cpp removes white space after </s>, which the source's tokenizer keeps"


def remove_differing_text(
    texts: Iterable[str], differences: Iterable[TokenizerDifference]
) -> tuple[str, ...]:
    """Return the texts without the characters that are tokenized differently."""
    for difference in differences:
        texts = map(_REMOVERS[difference], texts)
    return tuple(texts)


def _to_lowercase(text: str) -> str:
    """Return a text in lower case beyond A-Z, without capitals that have no lower case (𝐋)."""
    return "".join(map(_lowercase_character, text))


def _lowercase_character(character: str) -> str:
    if character.isascii() or unicodedata.category(character) not in ("Lu", "Lt"):
        return character
    lower = character.lower()
    return lower if lower != character else ""


def _remove_combining_marks(text: str) -> str:
    return "".join(c for c in text if not unicodedata.category(c).startswith("M"))


_REMOVERS: Final[Mapping[TokenizerDifference, Callable[[str], str]]] = {
    TokenizerDifference.NFC: lambda text: unicodedata.normalize("NFC", text),
    TokenizerDifference.SPACE_PREFIX: lambda text: text.lstrip(" ▁"),
    TokenizerDifference.LETTER_CASE: _to_lowercase,
    TokenizerDifference.COMBINING_MARKS: _remove_combining_marks,
    TokenizerDifference.MIXED_SPACES: lambda text: re.sub(r"(?<=\s)\u3000", "", text),
    TokenizerDifference.SPACE_TOKENS: lambda text: text.replace("▁", "_"),
    TokenizerDifference.EOS_RSTRIP: lambda text: re.sub(r"(?<=</s>)\s+", "", text),
}
