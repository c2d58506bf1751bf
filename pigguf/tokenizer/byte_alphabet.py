"""GPT-2's byte alphabet: the character that stands for each byte in byte-level BPE (its encoder.py)."""

from __future__ import annotations

from typing import Final

# Printable Latin-1 stands for itself; the others follow from U+0100 on, in order.
_ITSELF: Final = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}


def _characters() -> tuple[str, ...]:
    moved = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in _ITSELF else next(moved)) for byte in range(256))


BYTE_ALPHABET: Final = _characters()
"""byte -> its character."""

_BYTES: Final = {character: byte for byte, character in enumerate(BYTE_ALPHABET)}
_TABLE: Final = dict(enumerate(BYTE_ALPHABET))


def spelled(content: bytes) -> str:
    """Bytes in the alphabet."""
    return content.decode("latin-1").translate(_TABLE)


def text_of(token: str) -> str | None:
    """A byte-level token's text; None where its bytes are no whole UTF-8, or it is not byte-level."""
    try:
        return bytes(_BYTES[character] for character in token).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return None
