"""Texts as token ids, and the windows that they are evaluated in: the strided windows of perplexity and KL.

    texts = tokenize_texts(model, ["novel.txt"], max_tokens=None)
    windows = WindowSelection("half-window", stride=None, max_windows=None).windows(texts, length=2048)

A method of WINDOW_METHODS determines the windows of L tokens that a text of T tokens is split into, and which
tokens of a window are scored:

    half-window   adjacent windows; the tokens after the middle are scored, L/2 + 1 to L - 1. If the model
                  adds BOS, it replaces the first token of every window. This is the default of llama.cpp's
                  tools/perplexity/perplexity.cpp, and gives the same perplexity on the same text.
    sliding       windows S = `stride` tokens apart, each computed from an empty cache; the last S tokens of a
                  window are scored, and of the text's first window all but its first token. So every token is
                  scored once, with at least L - S tokens of context except in the first window. It is the
                  method of the Position Interpolation paper (arXiv 2306.15595, Section 3.2: Press et al.
                  2022, S = 256), and computes about L/S tokens for each scored one.
    whole         adjacent windows; all tokens but the first are scored, as in a loop over transformers'
                  `loss`.

No window spans two texts. A text starts with BOS if the model adds it; the rest of a text that is too short
for a window (or, sliding, for a stride) is not scored.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pigguf.common.file_io import read_error
from pigguf.common.text_decoding import decode_text
from pigguf.errors import TextError, UsageError
from pigguf.evals.model_under_test import ModelUnderTest
from pigguf.inference.engine import Model

WindowMethod = Literal["half-window", "sliding", "whole"]

FIRST_DEFAULT_WINDOW = 2048  # tokens
MIN_WINDOW = 8  # tokens; shorter windows have next to nothing to score


@dataclass(frozen=True)
class TokenizedText:
    """A text file as token ids.

    Attributes:
        name: the path of the file.
        sha256: the hash of its bytes.
        tokens: its token ids, with BOS first if the model adds it.
        bos_id: the id of that BOS token, or None.
    """

    name: str
    sha256: str
    tokens: list[int]
    bos_id: int | None


@dataclass(frozen=True)
class ScoredWindow:
    """A window of a text.

    Attributes:
        text_index: the index of the text.
        start: the index of the window's first token in the text.
        first_scored: the index in the window of the first token that is scored; all after it are scored too.
    """

    text_index: int
    start: int
    first_scored: int


@dataclass(frozen=True)
class WindowSelection:
    """Which windows of the texts are evaluated.

    Attributes:
        method: one of WINDOW_METHODS.
        stride: the tokens between sliding windows; None for the other methods.
        max_windows: the most windows of each length, spread evenly over all texts; None for all. With a
            stride, the first window is then scored like the others: its last `stride` tokens only.
    """

    method: WindowMethod
    stride: int | None
    max_windows: int | None

    def windows(self, texts: Sequence[TokenizedText], length: int) -> list[ScoredWindow]:
        """Return the windows of `length` tokens, in the order of the texts."""
        windows = [
            (index, start, first_scored)
            for index, text in enumerate(texts)
            for start, first_scored in WINDOW_METHODS[self.method](len(text.tokens), length, self.stride or 0)
        ]
        if self.max_windows is not None:
            windows = list(_evenly_spaced(windows, self.max_windows))
            if self.stride is not None:
                windows = [(index, start, length - self.stride) for index, start, _ in windows]
        return [ScoredWindow(*window) for window in windows]


def _half_window(n_tokens: int, length: int, stride: int) -> Iterator[tuple[int, int]]:
    return ((start, length // 2 + 1) for start in range(0, n_tokens - length + 1, length))


def _sliding(n_tokens: int, length: int, stride: int) -> Iterator[tuple[int, int]]:
    return ((start, length - stride if start else 1) for start in range(0, n_tokens - length + 1, stride))


def _whole(n_tokens: int, length: int, stride: int) -> Iterator[tuple[int, int]]:
    return ((start, 1) for start in range(0, n_tokens - length + 1, length))


# method -> for n_tokens of text, window length and stride: each window's start, and its first scored token
WINDOW_METHODS: dict[str, Callable[[int, int, int], Iterator[tuple[int, int]]]] = {
    "half-window": _half_window,
    "sliding": _sliding,
    "whole": _whole,
}


def _evenly_spaced(items: Sequence[Any], count: int) -> Iterable[Any]:
    """Return at most `count` of the items, evenly spaced, the first and the last among them."""
    if count >= len(items):
        return items
    if count == 1:
        return items[:1]
    return (items[i * (len(items) - 1) // (count - 1)] for i in range(count))


def default_windows(context_length: int) -> list[int]:
    """Return window lengths in tokens: 2048, doubled up to the context length, which is the last one."""
    windows = []
    length = FIRST_DEFAULT_WINDOW
    while length < context_length:
        windows.append(length)
        length *= 2
    return [*windows, context_length]


def check_windows(windows: Sequence[int]) -> list[int]:
    """Return window lengths in ascending order, each once.

    Raises:
        UsageError: if there are none, or one is shorter than MIN_WINDOW.
    """
    lengths = sorted(set(windows))
    if not lengths or lengths[0] < MIN_WINDOW:
        raise UsageError(f"the windows are {lengths}", f"give windows of at least {MIN_WINDOW} tokens")
    return lengths


def check_max_windows(max_windows: int | None) -> None:
    """Raise if the most windows to evaluate are fewer than one.

    Raises:
        UsageError: if they are.
    """
    if max_windows is not None and max_windows < 1:
        raise UsageError(f"`max_windows` is {max_windows}", "give a number of 1 or more")


def tokenize_texts(
    model: ModelUnderTest, files: Sequence[str | Path], max_tokens: int | None
) -> list[TokenizedText]:
    """Read texts and encode them with the model's own tokenizer.

    Args:
        model: the model under test.
        files: paths of UTF-8 text files.
        max_tokens: the number of tokens to keep of the beginning of each text; None keeps all.

    Raises:
        UsageError: if there is no file, or a file is not UTF-8 text.
        ReadError: if a file cannot be read.
    """
    if isinstance(files, (str, os.PathLike)) or not files:
        raise UsageError(f"the texts are {files!r}", "give a sequence of one or more files")
    with Model.open(model.path, vocab_only=True) as vocab:
        # llama.cpp's tokenizer decides whether a text gets BOS. Its EOS would end a text that continues here.
        bos_id = next((token for token in vocab.tokenize("") if token == vocab.bos), None)
        return [_tokenize_text(vocab, Path(file), bos_id, max_tokens) for file in files]


def _tokenize_text(vocab: Model, file: Path, bos_id: int | None, max_tokens: int | None) -> TokenizedText:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise read_error(file, error) from error
    tokens = vocab.tokenize(decode_text(data, str(file)), add_special=False)
    if bos_id is not None:
        tokens.insert(0, bos_id)
    return TokenizedText(str(file), hashlib.sha256(data).hexdigest(), tokens[:max_tokens], bos_id)


def check_texts_fill_window(texts: Sequence[TokenizedText], longest: int) -> None:
    """Raise if a text is shorter than the longest window.

    Args:
        texts: the texts.
        longest: the longest window, in tokens.

    Raises:
        TextError: if one is.
    """
    for text in texts:
        if len(text.tokens) < longest:
            raise TextError(
                f"{text.name} has {len(text.tokens):,} tokens; a window of {longest:,} needs as many",
                "give a longer text, or smaller windows",
            )


def texts_as_data(texts: Sequence[TokenizedText]) -> list[dict[str, Any]]:
    """Return how a report's settings name the texts."""
    return [{"name": text.name, "sha256": text.sha256, "tokens": len(text.tokens)} for text in texts]
