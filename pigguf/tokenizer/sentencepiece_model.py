"""tokenizer.model: the protobuf that sentencepiece keeps a vocabulary in, read and written.

Only the fields that decide tokens; their numbers are those of sentencepiece's
src/sentencepiece_model.proto (ModelProto). Written by hand because the protobuf package, which
could do it, is a heavy thing to need for four kinds of field.
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
class Piece:
    """One token: its text, its score, and its type (vocab.TokenType's numbers)."""

    text: str
    score: float = 0.0
    type: int = 1


@dataclass(frozen=True)
class SentencePieceModel:
    """What a tokenizer.model says; defaults are the proto's own. An id of -1 means none."""

    pieces: tuple[Piece, ...]
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
"""Appended to a model's bytes, it turns add_dummy_prefix off: protobuf merges a repeated message."""


def read_model(content: bytes, file: str) -> SentencePieceModel:
    """Read a tokenizer.model.

    Args:
        content: its bytes.
        file: named in the error.

    Raises:
        TokenizerError: the bytes are no sentencepiece model, or are cut short.
    """
    try:
        model = _read_model(content)
    except (IndexError, ValueError, struct.error) as error:
        raise TokenizerError(
            f"{file} is not a sentencepiece model, or is cut short", "download the file again"
        ) from error
    if not model.pieces:
        raise TokenizerError(f"{file} holds no pieces", "download the file again")
    return model


def write_model(model: SentencePieceModel) -> bytes:
    """The bytes of a tokenizer.model."""
    pieces = b"".join(
        _message(_PIECES, _text(_PIECE, piece.text), _float(_SCORE, piece.score), _number(_TYPE, piece.type))
        for piece in model.pieces
    )
    trainer = _message(
        _TRAINER_SPEC,
        _number(_MODEL_TYPE, model.algorithm),
        _number(_VOCAB_SIZE, len(model.pieces)),
        _number(_WHITESPACE_AS_SUFFIX, model.whitespace_as_suffix),
        _number(_BYTE_FALLBACK, model.byte_fallback),
        _number(_UNK_ID, model.unk_id),
        _number(_BOS_ID, model.bos_id),
        _number(_EOS_ID, model.eos_id),
        _number(_PAD_ID, model.pad_id),
    )
    normalizer = _message(
        _NORMALIZER_SPEC,
        _text(_NAME, model.normalizer),
        _field(_CHARSMAP, model.charsmap),
        _number(_ADD_DUMMY_PREFIX, model.add_dummy_prefix),
        _number(_REMOVE_EXTRA_WHITESPACES, model.remove_extra_whitespaces),
        _number(_ESCAPE_WHITESPACES, model.escape_whitespaces),
    )
    return pieces + trainer + normalizer


def _read_model(content: bytes) -> SentencePieceModel:
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(content):
        if number == _PIECES:
            pieces.append(_read_piece(_as_bytes(value)))
        elif number == _TRAINER_SPEC:
            trainer.update(_fields(_as_bytes(value)))
        elif number == _NORMALIZER_SPEC:
            normalizer.update(_fields(_as_bytes(value)))
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


def _read_piece(content: bytes) -> Piece:
    fields = dict(_fields(content))
    (score,) = struct.unpack("<f", _as_bytes(fields.get(_SCORE, b"\0\0\0\0")))
    return Piece(_as_bytes(fields.get(_PIECE, b"")).decode("utf-8"), score, _int(fields, _TYPE, 1))


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message in order: a number for a varint, bytes for anything else."""
    offset = 0
    while offset < len(content):
        tag, offset = _varint(content, offset)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, offset = _varint(content, offset)
            yield number, value
            continue
        if wire == _BYTES:
            size, offset = _varint(content, offset)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire}")
        if offset + size > len(content):
            raise ValueError("a field ends past the end")
        yield number, content[offset : offset + size]
        offset += size


def _varint(content: bytes, offset: int) -> tuple[int, int]:
    value = 0
    for place in range(10):
        byte = content[offset + place]
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, offset + place + 1
    raise ValueError("a number longer than ten bytes")


def _int(fields: dict[int, int | bytes], number: int, default: int) -> int:
    value = fields.get(number, default)
    if not isinstance(value, int):
        raise ValueError(f"field {number} holds bytes, not a number")
    value &= 0xFFFFFFFF  # int32, stored in 64 bits where negative
    return value - 2**32 if value >= 2**31 else value


def _as_bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number where bytes should be")
    return value


def _message(number: int, *fields: bytes) -> bytes:
    return _field(number, b"".join(fields))


def _field(number: int, content: bytes) -> bytes:
    return _encoded(number << 3 | _BYTES) + _encoded(len(content)) + content


def _text(number: int, value: str) -> bytes:
    return _field(number, value.encode("utf-8"))


def _number(number: int, value: int) -> bytes:
    return _encoded(number << 3 | _VARINT) + _encoded(value & 0xFFFFFFFFFFFFFFFF)


def _float(number: int, value: float) -> bytes:
    return _encoded(number << 3 | _FIXED32) + struct.pack("<f", value)


def _encoded(value: int) -> bytes:
    groups = []
    while True:
        value, low = value >> 7, value & 0x7F
        groups.append(low | 0x80 if value else low)
        if not value:
            return bytes(groups)
