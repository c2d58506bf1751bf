"""Pieces: what the merging part of a tokenizer holds, before added tokens and roles are put on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pigguf.tokenizer.known_differences import Limit
from pigguf.tokenizer.vocab import TokenType


@dataclass(frozen=True)
class Pieces:
    """The tokens of a byte-level or sentencepiece BPE, and how text reaches them.

    Attributes:
        model, pre: as in Vocab.
        file: where they were read.
        ids: text -> id.
        types: id -> type; an id that is not there is NORMAL.
        scores: id -> score ("llama").
        merges: as in Vocab ("gpt2").
        own_ids: roles that the file fills itself; -1 means none.
        around: the tokens that the file puts before and after a text, or None where it does not say.
        add_space_prefix: as in Vocab.
        limits: as in Vocab.
    """

    model: str
    pre: str
    file: str
    ids: Mapping[str, int]
    types: Mapping[int, TokenType] = field(default_factory=dict)
    scores: Mapping[int, float] = field(default_factory=dict)
    merges: tuple[str, ...] = ()
    own_ids: Mapping[str, int] = field(default_factory=dict)
    around: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    add_space_prefix: bool = False
    limits: tuple[Limit, ...] = ()
