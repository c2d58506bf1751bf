"""Tokens to text while they are drawn."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence

from pigguf.errors import UsageError
from pigguf.inference.engine import Model


def characters(model: Model, tokens: Iterable[int]) -> Iterator[str]:
    """The text of each token as it comes, "" where it only begins a character.

    A character's bytes may be spread over tokens: it comes whole, with the last of them. Bytes that are
    no UTF-8 become U+FFFD.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        yield decoder.decode(model.piece(token))
    if rest := decoder.decode(b"", final=True):
        yield rest


class Text:
    """A text while its tokens are drawn: whole characters, and nothing from a stop string on.

        text = Text(model, stop=["\\n\\n"])
        for token in tokens:
            shown = text.add(token)      what is certain by now, mostly this token's text
            if text.stopped: break
        shown = text.end()               what was held back

    Args:
        stop: the text ends before the first of these.
        without_first_space: sentencepiece begins a word with a space that the template has put already.
        shown: a control token whose name is text here.

    Raises:
        UsageError: a stop string is empty.
    """

    def __init__(
        self,
        model: Model,
        stop: Sequence[str] = (),
        *,
        without_first_space: bool = False,
        shown: int | None = None,
    ) -> None:
        if isinstance(stop, str) or not all(stop):
            raise UsageError(
                f"the stop strings are {stop!r}", "give a sequence of strings that are not empty"
            )
        self.stopped = False
        self._model = model
        self._stop = stop
        self._drops_space = without_first_space
        self._shown_token = shown
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def add(self, token: int) -> str:
        """What is certain with one token more: "" where a character or a stop string may begin."""
        piece = self._model.piece(token, special=token == self._shown_token)
        return self._take(self._decoder.decode(piece))

    def end(self) -> str:
        """What was held back, now that no token comes any more."""
        shown = self._take(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return shown + self._shown(rest)

    def _take(self, text: str) -> str:
        self._held += text
        found = min((self._held.index(stop) for stop in self._stop if stop in self._held), default=None)
        if found is not None:
            self.stopped = True
            certain, self._held = self._held[:found], ""
        else:
            safe = len(self._held) - max((overlap(self._held, stop) for stop in self._stop), default=0)
            certain, self._held = self._held[:safe], self._held[safe:]
        return self._shown(certain)

    def _shown(self, text: str) -> str:
        if text and self._drops_space:
            self._drops_space = False
            return text.removeprefix(" ")
        return text


def overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text may be the beginning of the stop string."""
    most = min(len(text), len(stop) - 1)
    return next((size for size in range(most, 0, -1) if text.endswith(stop[:size])), 0)
