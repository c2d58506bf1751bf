"""The source's own tokenizer: what a conversion's tokens are compared with.

The libraries that made the tokenizer do the work: `tokenizers` for a tokenizer.json, `sentencepiece`
for a tokenizer.model. The same file is taken as read_vocab takes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer

from pigguf.errors import TokenizerError
from pigguf.tokenizer.added_tokens import added_tokens
from pigguf.tokenizer.known_differences import Limit
from pigguf.tokenizer.sentencepiece_model import NO_DUMMY_PREFIX
from pigguf.tokenizer.tokenizer_files import TOKENIZER, TokenizerFiles
from pigguf.tokenizer.vocab import MATCHED_IN_TEXT
from pigguf.tokenizer.vocab_entries import Pieces
from pigguf.tokenizer.vocab_reader import read_pieces, token_type

Encoder = Callable[[str], list[int]]


def source_encoder(directory: Path, *, parse_special: bool = True) -> Encoder:
    """A function from text to token ids, with no BOS or EOS added.

    Args:
        directory: the checkpoint's.
        parse_special: whether special tokens' text is read as the tokens, or as any other text.

    Raises:
        TokenizerError: as read_vocab does.
    """
    files = TokenizerFiles.open(directory)
    pieces = read_pieces(files)
    if files.tokenizer is not None and pieces.file == str(files.path(files.tokenizer_file)):
        return _tokenizers_encoder(files, pieces, parse_special)
    return _sentencepiece_encoder(files, pieces, parse_special)


def _tokenizers_encoder(files: TokenizerFiles, pieces: Pieces, parse_special: bool) -> Encoder:
    path = files.path(files.tokenizer_file)
    try:
        tokenizer = (
            Tokenizer.from_file(str(path))
            if files.tokenizer_file == TOKENIZER
            else Tokenizer.from_str(json.dumps(files.tokenizer))
        )
    except Exception as error:  # the library raises nothing more exact
        raise TokenizerError(f"{path}: {error}", "download the file again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for token in added_tokens(files, pieces.ids).values():
        flags = {"normalized": token.normalized, "special": token.special, "rstrip": token.strips_after}
        tokenizer.add_tokens([AddedToken(token.content, **flags)])
        if tokenizer.token_to_id(token.content) != token.id:
            raise TokenizerError(
                f"{files.path(token.file)} gives {token.content!r} the id {token.id}; it becomes "
                f"{tokenizer.token_to_id(token.content)} where it is added to {path}"
            )

    tokenizer.encode_special_tokens = not parse_special

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    return encode


def _sentencepiece_encoder(files: TokenizerFiles, pieces: Pieces, parse_special: bool) -> Encoder:
    """sentencepiece for the text between special tokens, as transformers' LlamaTokenizer does it.

    Every stretch of text gets the space prefix by itself ("legacy"); with legacy = false only one at
    the text's beginning does.
    """
    model = files.sentencepiece or b""
    prefixed = _processor(model) if pieces.add_space_prefix else _processor(model + NO_DUMMY_PREFIX)
    inner = _processor(model + NO_DUMMY_PREFIX) if Limit.SPACE_PREFIX in pieces.limits else prefixed
    if not parse_special:  # sentencepiece itself reads no control token out of text
        return lambda text: list(prefixed.encode(text))
    special = _special_ids(files, pieces)
    pattern = _any_of(special)
    stripping = {token.content for token in added_tokens(files, pieces.ids).values() if token.strips_after}

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        before = ""
        for index, part in enumerate(pattern.split(text)):  # at odd places what the pattern matched
            if index % 2:
                ids.append(special[part])
                before = part
            elif stretch := part.lstrip() if before in stripping else part:
                ids += (inner if index else prefixed).encode(stretch)
        return ids

    return encode


def _processor(model: bytes) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_proto=model)


def _special_ids(files: TokenizerFiles, pieces: Pieces) -> dict[str, int]:
    """text -> id of the tokens that are looked for before sentencepiece sees the text."""
    added = added_tokens(files, pieces.ids)
    own = {
        text: token
        for text, token in pieces.ids.items()
        if token_type(pieces, token, added.get(token)) in MATCHED_IN_TEXT
    }
    return {**own, **{token.content: token.id for token in added.values()}}


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the texts, the longest where several begin at one place."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
