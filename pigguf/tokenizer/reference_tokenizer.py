"""Run the source's own tokenizer, which a conversion's tokens are compared with.

The libraries that made the tokenizer do the work: `tokenizers` for a tokenizer.json, `sentencepiece`
for a tokenizer.model. Which file is used is decided as in read_vocab.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer

from pigguf.errors import TokenizerError
from pigguf.tokenizer.added_tokens import read_added_tokens
from pigguf.tokenizer.base_vocab import BaseVocab
from pigguf.tokenizer.known_differences import TokenizerDifference
from pigguf.tokenizer.sentencepiece_model import NO_DUMMY_PREFIX
from pigguf.tokenizer.tokenizer_files import TOKENIZER_JSON, TokenizerFiles
from pigguf.tokenizer.vocab import SPECIAL_TOKEN_TYPES
from pigguf.tokenizer.vocab_reader import read_base_vocab, token_type

Encoder = Callable[[str], list[int]]


def load_reference_encoder(directory: Path, *, parse_special: bool = True) -> Encoder:
    """Return a function from text to token ids that adds no BOS or EOS.

    Args:
        directory: the checkpoint's directory.
        parse_special: whether the text of special tokens is tokenized as these tokens, or as plain text.

    Raises:
        TokenizerError: as read_vocab.
    """
    files = TokenizerFiles.open(directory)
    base = read_base_vocab(files)
    if files.tokenizer_json is not None and base.file == str(files.path(files.tokenizer_json_source)):
        return _tokenizers_encoder(files, base, parse_special)
    return _sentencepiece_encoder(files, base, parse_special)


def _tokenizers_encoder(files: TokenizerFiles, base: BaseVocab, parse_special: bool) -> Encoder:
    path = files.path(files.tokenizer_json_source)
    try:
        tokenizer = (
            Tokenizer.from_file(str(path))
            if files.tokenizer_json_source == TOKENIZER_JSON
            else Tokenizer.from_str(json.dumps(files.tokenizer_json))
        )
    except Exception as error:  # tokenizers raises only Exception
        raise TokenizerError(f"{path}: {error}", "download the file again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for token in read_added_tokens(files, base.ids).values():
        flags = {"normalized": token.normalized, "special": token.special, "rstrip": token.rstrip}
        tokenizer.add_tokens([AddedToken(token.content, **flags)])
        if tokenizer.token_to_id(token.content) != token.id:
            raise TokenizerError(
                f"{files.path(token.file)} gives {token.content!r} the id {token.id}; "
                f"added to {path} it gets {tokenizer.token_to_id(token.content)}"
            )

    tokenizer.encode_special_tokens = not parse_special

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    return encode


def _sentencepiece_encoder(files: TokenizerFiles, base: BaseVocab, parse_special: bool) -> Encoder:
    """Return an encoder that runs sentencepiece between special tokens, as transformers' LlamaTokenizer does.

    Every segment of text gets the space prefix ("legacy"); with legacy = false only one at the
    beginning of the text does.
    """
    model = files.sentencepiece_model or b""
    prefixed = _processor(model) if base.add_space_prefix else _processor(model + NO_DUMMY_PREFIX)
    inner = (
        _processor(model + NO_DUMMY_PREFIX)
        if TokenizerDifference.SPACE_PREFIX in base.known_differences
        else prefixed
    )
    if not parse_special:  # sentencepiece matches no control tokens in text
        return lambda text: list(prefixed.encode(text))
    special = _matched_tokens(files, base)
    pattern = _alternation(special)
    rstrip_tokens = {token.content for token in read_added_tokens(files, base.ids).values() if token.rstrip}

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        previous = ""
        for index, segment in enumerate(pattern.split(text)):  # matches have odd indices
            if index % 2:
                ids.append(special[segment])
                previous = segment
            elif plain := segment.lstrip() if previous in rstrip_tokens else segment:
                ids += (inner if index else prefixed).encode(plain)
        return ids

    return encode


def _processor(model: bytes) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_proto=model)


def _matched_tokens(files: TokenizerFiles, base: BaseVocab) -> dict[str, int]:
    """Return text -> id of the tokens that are matched before sentencepiece gets the text."""
    added = read_added_tokens(files, base.ids)
    base_special = {
        text: token
        for text, token in base.ids.items()
        if token_type(base, token, added.get(token)) in SPECIAL_TOKEN_TYPES
    }
    return {**base_special, **{token.content: token.id for token in added.values()}}


def _alternation(texts: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that matches any of the texts, the longest if several match."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
