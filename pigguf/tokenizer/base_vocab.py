"""BaseVocab: a tokenizer's own vocabulary, before added tokens and roles are applied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pigguf.tokenizer.known_differences import TokenizerDifference
from pigguf.tokenizer.vocab import TokenType


@dataclass(frozen=True)
class BaseVocab:
    """The vocabulary of a byte-level or sentencepiece BPE, without added tokens.

    Attributes:
        model, pre: as in Vocab.
        file: the file that it was read from.
        ids: text -> id.
        types: id -> type; ids that are not in it are NORMAL.
        scores: id -> score ("llama").
        merges: as in Vocab ("gpt2").
        special_ids: role -> id for roles that the file itself fills; -1 for none.
        template_tokens: the tokens that the file puts before and after a text, or None if it does not
            define them.
        add_space_prefix: as in Vocab.
        known_differences: as in Vocab.
    """

    model: str
    pre: str
    file: str
    ids: Mapping[str, int]
    types: Mapping[int, TokenType] = field(default_factory=dict)
    scores: Mapping[int, float] = field(default_factory=dict)
    merges: tuple[str, ...] = ()
    special_ids: Mapping[str, int] = field(default_factory=dict)
    template_tokens: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    add_space_prefix: bool = False
    known_differences: tuple[TokenizerDifference, ...] = ()
