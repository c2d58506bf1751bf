"""Streaming detokenizer: text from tokens while they are generated, in whole characters, to a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence

from pigguf.errors import UsageError
from pigguf.inference.engine import Model


def stream_text(model: Model, tokens: Iterable[int]) -> Iterator[str]:
    """Yield the text of each token as it comes, "" for a token that only begins a character.

    The bytes of a character may be spread over several tokens: it is yielded with the last of them. Bytes
    that are not UTF-8 become U+FFFD.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        yield decoder.decode(model.token_to_piece(token))
    if rest := decoder.decode(b"", final=True):
        yield rest


class StreamingDetokenizer:
    """A text while its tokens are generated: whole characters, and nothing from a stop string on.

        detokenizer = StreamingDetokenizer(model, stop=["\\n\\n"])
        for token in tokens:
            text = detokenizer.add_token(token)      mostly this token's text
            if detokenizer.stopped: break
        text = detokenizer.finalize()                what was held back

    Attributes:
        stopped: a stop string was found; the text before it is complete.

    Args:
        model: the model whose tokens they are.
        stop: the text ends before the first of these strings.
        strip_first_space: remove a space at the beginning, which sentencepiece puts before a word and the
            template has already.
        visible_token: a control token whose name is part of the text.

    Raises:
        UsageError: a stop string is empty.
    """

    def __init__(
        self,
        model: Model,
        stop: Sequence[str] = (),
        *,
        strip_first_space: bool = False,
        visible_token: int | None = None,
    ) -> None:
        if isinstance(stop, str) or not all(stop):
            raise UsageError(
                f"the stop strings are {stop!r}", "give a sequence of strings that are not empty"
            )
        self.stopped = False
        self._model = model
        self._stop = stop
        self._strip_first_space = strip_first_space
        self._visible_token = visible_token
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = ""

    def add_token(self, token: int) -> str:
        """Return the text that is certain with this token, up to a possible start of a stop string."""
        piece = self._model.token_to_piece(token, special=token == self._visible_token)
        return self._add_text(self._decoder.decode(piece))

    def finalize(self) -> str:
        """Return what was held back; no token follows."""
        text = self._add_text(self._decoder.decode(b"", final=True))
        rest, self._pending = self._pending, ""
        return text + self._without_first_space(rest)

    def _add_text(self, text: str) -> str:
        self._pending += text
        stop_at = min(
            (self._pending.index(stop) for stop in self._stop if stop in self._pending), default=None
        )
        if stop_at is not None:
            self.stopped = True
            certain, self._pending = self._pending[:stop_at], ""
        else:
            held_back = max((partial_match_length(self._pending, stop) for stop in self._stop), default=0)
            certain_length = len(self._pending) - held_back
            certain, self._pending = self._pending[:certain_length], self._pending[certain_length:]
        return self._without_first_space(certain)

    def _without_first_space(self, text: str) -> str:
        if text and self._strip_first_space:
            self._strip_first_space = False
            return text.removeprefix(" ")
        return text


def partial_match_length(text: str, stop: str) -> int:
    """Return how many characters at the end of the text may be the beginning of the stop string."""
    most = min(len(text), len(stop) - 1)
    return next((size for size in range(most, 0, -1) if text.endswith(stop[:size])), 0)
