"""Parse and serialize tokenizer.model, the protobuf of a sentencepiece vocabulary.

Only the fields that decide tokens are read; their numbers are those of sentencepiece's
src/sentencepiece_model.proto (ModelProto). It is written by hand, because the protobuf package would be a
heavy dependency for four kinds of field.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pigguf.errors import TokenizerError

UNIGRAM, BPE, WORD, CHAR = 1, 2, 3, 4
ALGORITHMS = {UNIGRAM: "unigram", BPE: "BPE", WORD: "word", CHAR: "char"}

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# ModelProto
_PIECES, _TRAINER_SPEC, _NORMALIZER_SPEC = 1, 2, 3
# SentencePiece
_PIECE, _SCORE, _TYPE = 1, 2, 3
# TrainerSpec
_MODEL_TYPE, _VOCAB_SIZE, _WHITESPACE_AS_SUFFIX, _BYTE_FALLBACK = 3, 4, 24, 35
_UNK_ID, _BOS_ID, _EOS_ID, _PAD_ID = 40, 41, 42, 43
# NormalizerSpec
_NAME, _CHARSMAP, _ADD_DUMMY_PREFIX, _REMOVE_EXTRA_WHITESPACES, _ESCAPE_WHITESPACES = 1, 2, 3, 4, 5


@dataclass(frozen=True)
class SentencePiece:
    """One token: its text, its score and its type (a number of vocab.TokenType)."""

    text: str
    score: float = 0.0
    type: int = 1


@dataclass(frozen=True)
class SentencePieceModel:
    """The content of a tokenizer.model; defaults are those of the proto. An id of -1 means none."""

    pieces: tuple[SentencePiece, ...]
    algorithm: int = UNIGRAM
    byte_fallback: bool = False
    whitespace_as_suffix: bool = False
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = -1
    normalizer: str = ""
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True


NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
"""Bytes that turn add_dummy_prefix off when appended to a model: protobuf merges repeated messages."""


def parse_sentencepiece_model(content: bytes, file: str) -> SentencePieceModel:
    """Parse a tokenizer.model.

    Args:
        content: the file's bytes.
        file: path of the file, for messages.

    Raises:
        TokenizerError: the bytes are not a sentencepiece model, or are cut short.
    """
    try:
        model = _parse_model(content)
    except (IndexError, ValueError, struct.error) as error:
        raise TokenizerError(
            f"{file} is not a sentencepiece model, or is cut short", "download the file again"
        ) from error
    if not model.pieces:
        raise TokenizerError(f"{file} has no pieces", "download the file again")
    return model


def serialize_sentencepiece_model(model: SentencePieceModel) -> bytes:
    """Return the bytes of a tokenizer.model."""
    pieces = b"".join(
        _encode_message(
            _PIECES,
            _encode_string(_PIECE, piece.text),
            _encode_float(_SCORE, piece.score),
            _encode_int(_TYPE, piece.type),
        )
        for piece in model.pieces
    )
    trainer = _encode_message(
        _TRAINER_SPEC,
        _encode_int(_MODEL_TYPE, model.algorithm),
        _encode_int(_VOCAB_SIZE, len(model.pieces)),
        _encode_int(_WHITESPACE_AS_SUFFIX, model.whitespace_as_suffix),
        _encode_int(_BYTE_FALLBACK, model.byte_fallback),
        _encode_int(_UNK_ID, model.unk_id),
        _encode_int(_BOS_ID, model.bos_id),
        _encode_int(_EOS_ID, model.eos_id),
        _encode_int(_PAD_ID, model.pad_id),
    )
    normalizer = _encode_message(
        _NORMALIZER_SPEC,
        _encode_string(_NAME, model.normalizer),
        _encode_field(_CHARSMAP, model.charsmap),
        _encode_int(_ADD_DUMMY_PREFIX, model.add_dummy_prefix),
        _encode_int(_REMOVE_EXTRA_WHITESPACES, model.remove_extra_whitespaces),
        _encode_int(_ESCAPE_WHITESPACES, model.escape_whitespaces),
    )
    return pieces + trainer + normalizer


def _parse_model(content: bytes) -> SentencePieceModel:
    pieces: list[SentencePiece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _parse_fields(content):
        if number == _PIECES:
            pieces.append(_parse_piece(_as_bytes(value)))
        elif number == _TRAINER_SPEC:
            trainer.update(_parse_fields(_as_bytes(value)))
        elif number == _NORMALIZER_SPEC:
            normalizer.update(_parse_fields(_as_bytes(value)))
    default = SentencePieceModel(())
    return SentencePieceModel(
        pieces=tuple(pieces),
        algorithm=_int(trainer, _MODEL_TYPE, default.algorithm),
        byte_fallback=bool(_int(trainer, _BYTE_FALLBACK, 0)),
        whitespace_as_suffix=bool(_int(trainer, _WHITESPACE_AS_SUFFIX, 0)),
        unk_id=_int(trainer, _UNK_ID, default.unk_id),
        bos_id=_int(trainer, _BOS_ID, default.bos_id),
        eos_id=_int(trainer, _EOS_ID, default.eos_id),
        pad_id=_int(trainer, _PAD_ID, default.pad_id),
        normalizer=_as_bytes(normalizer.get(_NAME, b"")).decode("utf-8"),
        charsmap=_as_bytes(normalizer.get(_CHARSMAP, b"")),
        add_dummy_prefix=bool(_int(normalizer, _ADD_DUMMY_PREFIX, 1)),
        remove_extra_whitespaces=bool(_int(normalizer, _REMOVE_EXTRA_WHITESPACES, 1)),
        escape_whitespaces=bool(_int(normalizer, _ESCAPE_WHITESPACES, 1)),
    )


def _parse_piece(content: bytes) -> SentencePiece:
    fields = dict(_parse_fields(content))
    (score,) = struct.unpack("<f", _as_bytes(fields.get(_SCORE, b"\0\0\0\0")))
    return SentencePiece(_as_bytes(fields.get(_PIECE, b"")).decode("utf-8"), score, _int(fields, _TYPE, 1))


def _parse_fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield a message's field numbers and values, in order: an int for a varint, bytes for the others."""
    offset = 0
    while offset < len(content):
        tag, offset = _parse_varint(content, offset)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, offset = _parse_varint(content, offset)
            yield number, value
            continue
        if wire == _BYTES:
            size, offset = _parse_varint(content, offset)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire}")
        if offset + size > len(content):
            raise ValueError("a field ends past the end")
        yield number, content[offset : offset + size]
        offset += size


def _parse_varint(content: bytes, offset: int) -> tuple[int, int]:
    value = 0
    for index in range(10):
        byte = content[offset + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, offset + index + 1
    raise ValueError("a varint longer than ten bytes")


def _int(fields: dict[int, int | bytes], number: int, default: int) -> int:
    value = fields.get(number, default)
    if not isinstance(value, int):
        raise ValueError(f"field {number} is bytes, not a number")
    value &= 0xFFFFFFFF  # int32, stored in 64 bits where negative
    return value - 2**32 if value >= 2**31 else value


def _as_bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number instead of bytes")
    return value


def _encode_message(number: int, *fields: bytes) -> bytes:
    return _encode_field(number, b"".join(fields))


def _encode_field(number: int, content: bytes) -> bytes:
    return _encode_varint(number << 3 | _BYTES) + _encode_varint(len(content)) + content


def _encode_string(number: int, value: str) -> bytes:
    return _encode_field(number, value.encode("utf-8"))


def _encode_int(number: int, value: int) -> bytes:
    return _encode_varint(number << 3 | _VARINT) + _encode_varint(value & 0xFFFFFFFFFFFFFFFF)


def _encode_float(number: int, value: float) -> bytes:
    return _encode_varint(number << 3 | _FIXED32) + struct.pack("<f", value)


def _encode_varint(value: int) -> bytes:
    groups = []
    while True:
        value, low = value >> 7, value & 0x7F
        groups.append(low | 0x80 if value else low)
        if not value:
            return bytes(groups)
