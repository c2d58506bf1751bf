"""GPT-2's byte alphabet: the character for each byte in byte-level BPE (encoder.py, bytes_to_unicode)."""

from __future__ import annotations

from typing import Final

# Printable Latin-1 bytes map to themselves, the others to U+0100 and up, in order.
_IDENTITY_BYTES: Final = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}


def _bytes_to_unicode() -> tuple[str, ...]:
    remapped = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in _IDENTITY_BYTES else next(remapped)) for byte in range(256))


BYTE_ALPHABET: Final = _bytes_to_unicode()
"""Character of each byte, 256 of them."""

_BYTE_OF_CHARACTER: Final = {character: byte for byte, character in enumerate(BYTE_ALPHABET)}
_TRANSLATION_TABLE: Final = dict(enumerate(BYTE_ALPHABET))


def bytes_to_byte_level(content: bytes) -> str:
    """Return bytes as byte-level text."""
    return content.decode("latin-1").translate(_TRANSLATION_TABLE)


def byte_level_to_text(token: str) -> str | None:
    """Return a byte-level token's text; None if its bytes are not complete UTF-8, or it is not byte-level."""
    try:
        return bytes(_BYTE_OF_CHARACTER[character] for character in token).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return None
