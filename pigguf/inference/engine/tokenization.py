"""Vocabulary: text to token ids and back, with a loaded model's own tokenizer.

Not here: the checkpoint's tokenizer that becomes a GGUF's (pigguf/tokenizer/).
Upstream: llama.cpp src/llama-vocab.cpp.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from pigguf.common.format_bytes import format_memory
from pigguf.errors import EngineError, UsageError
from pigguf.gguf_io import GGUFFile
from pigguf.gguf_io.metadata import get_array, get_value
from pigguf.inference.engine import library
from pigguf.inference.engine.large_stack import run_with_large_stack
from pigguf.tokenizer.vocab import SPECIAL_TOKEN_TYPES, TokenType

_MAX_SPECIAL_TOKENS = 1 << 15  # in one text; they take some seconds


class Vocabulary:
    """The vocabulary of a loaded model; using it after the model is closed raises EngineError.

    Attributes:
        path, file: the file it came from, and its header.
        vocab_size: the number of tokens.
        bos, eos: token ids, or None; bos_text, eos_text: their text, or "".
        add_space_prefix: whether tokenize puts a space before the first word, as sentencepiece models need
            it.
        max_piece_bytes: the length in UTF-8 of the longest token.
    """

    def __init__(self, handle: Any, file: GGUFFile) -> None:
        llama = library.load()
        self._llama = llama
        self._handle = handle
        self._vocab = llama.llama_model_get_vocab(handle)
        self.file = file
        self.path = file.path
        self.vocab_size: int = llama.llama_vocab_n_tokens(self._vocab)
        self.bos, self.bos_text = self._special_token(llama.llama_vocab_bos(self._vocab))
        self.eos, self.eos_text = self._special_token(llama.llama_vocab_eos(self._vocab))
        texts = get_array(file.metadata, "tokenizer.ggml.tokens") or ()
        self.max_piece_bytes = max(len(text.encode()) for text in texts)
        is_sentencepiece = get_value(file.metadata, "tokenizer.ggml.model", str) == "llama"
        self.add_space_prefix = bool(
            get_value(file.metadata, "tokenizer.ggml.add_space_prefix", bool, is_sentencepiece)
        )

    @property
    def handle(self) -> Any:
        """The library's llama_model pointer.

        Raises:
            EngineError: the model was closed.
        """
        if self._handle is None:
            raise EngineError(
                f"the model {self.path} was closed", "keep its `with` block open while it is used"
            )
        return self._handle

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Return the token ids of a text.

        Args:
            text: the text.
            add_special: add BOS and EOS where the file asks for them.
            parse_special: tokenize the text of special tokens ("<|im_start|>") as these tokens.

        Raises:
            UsageError: the text cannot be encoded as UTF-8, is 2 GiB long, has a run of a million characters
                without a break, or holds tens of thousands of special tokens.
        """
        _ = self.handle
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the text holds half a character at {error.start} (a lone surrogate)"
            ) from error
        if len(data) >= 2**31:
            raise UsageError(
                f"the text is {format_memory(len(data))} long, more than llama.cpp takes at once"
            )
        self._check_special_tokens(text, parse_special)
        return run_with_large_stack(text, lambda: self._tokenize(data, add_special, parse_special))

    def _check_special_tokens(self, text: str, parse_special: bool) -> None:
        """Raise if a text holds too many special tokens to tokenize in seconds.

        llama.cpp finds them one by one and counts those before each (tokenizer_st_partition), so its time
        grows with the square of their number.
        """
        if len(text) <= _MAX_SPECIAL_TOKENS:
            return
        count = 0
        for special, token_type in self._special_texts:
            if (parse_special or token_type == TokenType.USER_DEFINED) and special in text:
                count += text.count(special)
                text = text.replace(special, "\0")
        if count > _MAX_SPECIAL_TOKENS:
            raise UsageError(
                f"the text holds {count:,} special tokens, more than {_MAX_SPECIAL_TOKENS:,}",
                "this is hardly text: tokenize it in parts",
            )

    @cached_property
    def _special_texts(self) -> list[tuple[str, int]]:
        """The texts that are one token wherever they occur, with their token types, in llama.cpp's order."""
        texts = get_array(self.file.metadata, "tokenizer.ggml.tokens") or ()
        types = get_array(self.file.metadata, "tokenizer.ggml.token_type") or ()
        special = [
            pair for pair in zip(texts, types, strict=False) if pair[0] and pair[1] in SPECIAL_TOKEN_TYPES
        ]
        return sorted(special, key=lambda pair: -len(pair[0].encode()))

    def _tokenize(self, data: bytes, add_special: bool, parse_special: bool) -> list[int]:
        capacity = len(data) + 16
        while True:
            tokens = (ctypes.c_int32 * capacity)()
            count = self._llama.llama_tokenize(
                self._vocab, data, len(data), tokens, capacity, add_special, parse_special
            )
            if count >= 0:
                return tokens[:count]
            capacity = -count

    def token_to_piece(self, token: int, *, special: bool = False) -> bytes:
        """Return a token's text as bytes, which may end inside a UTF-8 character.

        Args:
            token: the token id.
            special: return a special token's text instead of b"".

        Raises:
            UsageError: the vocabulary has no such token.
        """
        _ = self.handle
        self.check_token_ids((token,))
        capacity = 64
        while True:
            buffer = ctypes.create_string_buffer(capacity)
            count = self._llama.llama_token_to_piece(self._vocab, token, buffer, capacity, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            capacity = -count

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Return the text of token ids; bytes that are not UTF-8 become U+FFFD.

        The space that tokenize added before the first word is removed.

        Raises:
            UsageError: the vocabulary has no such token.
        """
        pieces = (self.token_to_piece(token, special=special) for token in tokens)
        text = b"".join(pieces).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.add_space_prefix else text

    def is_eog(self, token: int) -> bool:
        """Return whether a token ends generation (EOS, end of turn, ...)."""
        _ = self.handle
        return bool(self._llama.llama_vocab_is_eog(self._vocab, token))

    def check_token_ids(self, tokens: Sequence[int]) -> None:
        """Raise if a token id is outside the vocabulary, on which llama.cpp would abort the process.

        Raises:
            UsageError: it is.
        """
        if tokens and (min(tokens) < 0 or max(tokens) >= self.vocab_size):
            wrong = next(token for token in tokens if not 0 <= token < self.vocab_size)
            raise UsageError(f"there is no token {wrong} in a vocabulary of {self.vocab_size}")

    def _special_token(self, token: int) -> tuple[int | None, str]:
        if token < 0:
            return None, ""
        return token, self._llama.llama_vocab_get_text(self._vocab, token).decode("utf-8", "replace")
