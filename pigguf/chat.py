"""A conversation inside one context window: messages, documents, answers, and what they take up.

    with Model.open(path) as model, Context(model) as context, context.sequence() as session:
        chat = Chat(model, session, system="Answer briefly.")
        chat.add_document("report.txt")
        for text in chat.ask("What was decided?"):
            print(text, end="", flush=True)

Contract: the conversation is rendered anew for each question and the cache keeps what it already holds
of it. A question that does not fit is refused with token counts, nothing is ever cut. A question that
failed or was stopped before the first word leaves the conversation as it was; an answer stopped later
stays as far as it was said.
Left out: how messages become tokens (chat_format.py), how tokens are drawn (engine/sampling.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pigguf.chat_format import ChatFormat
from pigguf.documents import decode_text
from pigguf.engine import Model, Sampling, Session
from pigguf.engine.session import StopReason
from pigguf.errors import ContextOverflow, UsageError
from pigguf.files import atomic_write
from pigguf.progress import SILENT, Progress
from pigguf.text import characters

ANSWER_ROOM = 64
"""Tokens of the window that a question must leave free for its answer."""


@dataclass(frozen=True)
class Document:
    """A text that goes in with the next question; `tokens` is what it takes of the window."""

    name: str
    text: str
    tokens: int

    def quoted(self) -> str:
        return f"[Document: {self.name}]\n{self.text}\n[End of document: {self.name}]\n\n"


@dataclass(frozen=True)
class Turn:
    """One question and its answer in numbers.

    Attributes:
        prompt_tokens: the whole prompt; cached_tokens: how many of them the cache held already.
        answer_tokens: tokens drawn.
        prefill_seconds: reading the prompt; first_token_seconds: from the question to the answer's first
            token; decode_seconds: from the first token to the last.
        stop_reason: "end", "length" (max_tokens), "window" (it is full) or "interrupted".
    """

    prompt_tokens: int
    cached_tokens: int
    answer_tokens: int
    prefill_seconds: float
    first_token_seconds: float
    decode_seconds: float
    stop_reason: StopReason

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens a second, of those that had to be read."""
        return (self.prompt_tokens - self.cached_tokens) / max(self.prefill_seconds, 1e-9)

    @property
    def decode_rate(self) -> float:
        """Answer tokens a second, once the first is there."""
        return max(self.answer_tokens - 1, 0) / max(self.decode_seconds, 1e-9)


@dataclass(frozen=True)
class Share:
    """What one part of the conversation takes of the window."""

    part: Literal["system", "user", "assistant", "template", "document"]
    text: str
    tokens: int


class Chat:
    """A conversation on one session.

    Args:
        model, session: the session must be one of the model's, and is the chat's alone.
        system: the system prompt, or None for whatever the template does without one.
        sampling: how tokens are drawn.
        max_tokens: most tokens of an answer; None is up to the window's end.

    Attributes:
        messages: the conversation so far, {"role": ..., "content": ...}; the system prompt is the first.
        documents: what goes in with the next question.
        last_turn: the last answer in numbers, None before the first.
        context_length: the window in tokens.

    Raises:
        TokenizerError: the model has no chat template, or one that is not understood.
    """

    def __init__(
        self,
        model: Model,
        session: Session,
        *,
        system: str | None = None,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self.messages: list[dict[str, str]] = []
        self.documents: list[Document] = []
        self.last_turn: Turn | None = None
        self.context_length = session.length + session.room
        self._model = model
        self._session = session
        self._system = system
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._format = ChatFormat(model)
        self.clear()

    # ---- talking ---------------------------------------------------------------------------------

    def ask(self, text: str, progress: Progress = SILENT) -> Iterator[str]:
        """The answer to a question, as text that never cuts a character, while it is drawn.

        The documents that wait go in before the text. Closing the iterator, or Ctrl-C, stops the answer.
        Progress is the session's: one stage, "prefill", in tokens.

        Raises:
            ContextOverflow: the question does not fit; the message has the counts.
            TokenizerError: the template refuses the conversation.
        """
        question = {"role": "user", "content": "".join(d.quoted() for d in self.documents) + text}
        prompt = self._prompt(question)
        begun = time.monotonic()
        cached = self._session.advance_to(prompt, progress)
        read = time.monotonic()

        answer = _Answer(self._model)
        tokens = self._session.generate(self._sampling, self._max_tokens)
        try:
            yield from answer.texts(tokens)
        finally:
            stop_reason = self._session.stop_reason or "interrupted"
            if answer.text or stop_reason != "interrupted":
                self.messages += [question, {"role": "assistant", "content": answer.text}]
                self.documents.clear()
            self.last_turn = Turn(
                prompt_tokens=len(prompt),
                cached_tokens=cached,
                answer_tokens=answer.tokens,
                prefill_seconds=read - begun,
                first_token_seconds=answer.first_at - begun,
                decode_seconds=answer.last_at - answer.first_at,
                stop_reason=stop_reason,
            )

    def _prompt(self, question: dict[str, str]) -> list[int]:
        """The conversation and the question as tokens, refused where they do not fit."""
        prompt = self._format.tokens([*self.messages, question])
        if len(prompt) + self._answer_room > self.context_length:
            raise self._overflow("the message", len(prompt) - self.used, waiting=0)
        return prompt

    @property
    def _answer_room(self) -> int:
        return min(ANSWER_ROOM, self._max_tokens or ANSWER_ROOM, self.context_length // 2)

    def _overflow(self, what: str, tokens: int, waiting: int) -> ContextOverflow:
        shares = (
            (self.used, "for the conversation so far"),
            (waiting, "for the documents before it"),
            (self._answer_room, "for an answer"),
        )
        free = self.context_length - sum(taken for taken, _ in shares)
        less = ", ".join(f"{taken:,} {purpose}" for taken, purpose in shares if taken)
        return ContextOverflow(
            f"{what} is {tokens:,} tokens and {max(0, free):,} fit: "
            f"the window is {self.context_length:,}, less {less}",
            "shorten it, clear the conversation, or take a larger context if the model has one",
        )

    # ---- documents -------------------------------------------------------------------------------

    def add_document(self, path: str | Path) -> Document:
        """Read a UTF-8 text file that goes in with the next question.

        Raises:
            UsageError: there is no such file, or it is not text.
            ContextOverflow: it cannot fit into what is left of the window.
        """
        path = Path(path)
        # A token is at most so many bytes: more than this cannot fit, whatever it says.
        most = self.context_length * self._model.longest_piece
        data = _read_at_most(path, most)
        if len(data) > most:
            raise ContextOverflow(
                f"{path} is over {most:,} bytes, more than a window of {self.context_length:,} tokens holds",
                "take a part of it, or a larger context if the model has one",
            )
        return self.add_text(path.name, decode_text(data, str(path)))

    def add_text(self, name: str, text: str) -> Document:
        """Like add_document, for a text that is no file.

        Raises:
            ContextOverflow: it cannot fit into what is left of the window.
        """
        document = Document(name, text, self._format.count(text))
        waiting = sum(other.tokens for other in self.documents)
        if self.used + waiting + document.tokens + self._answer_room > self.context_length:
            raise self._overflow(name, document.tokens, waiting)
        self.documents.append(document)
        return document

    # ---- the window ------------------------------------------------------------------------------

    @property
    def used(self) -> int:
        """Tokens of the window that the conversation so far takes."""
        if not any(message["role"] == "user" for message in self.messages):
            return sum(self._format.count(message["content"]) for message in self.messages)
        return len(self._format.tokens(self.messages, answer_next=False))

    def shares(self) -> list[Share]:
        """What takes up the window: each message, the template around them, and waiting documents."""
        shares = [
            Share(message["role"], message["content"], self._format.count(message["content"]))  # type: ignore[arg-type]
            for message in self.messages
        ]
        template = self.used - sum(share.tokens for share in shares)
        shares.append(Share("template", "", template))
        shares += [Share("document", document.name, document.tokens) for document in self.documents]
        return shares

    def clear(self) -> None:
        """Forget everything but the system prompt."""
        self.messages = [{"role": "system", "content": self._system}] if self._system else []
        self.documents.clear()
        self._session.keep(0)

    def save(self, path: str | Path) -> None:
        """Write the conversation as JSON: {"model": ..., "messages": [...]}.

        Raises:
            OutputError: the file cannot be written; an older one is as it was.
        """
        value = {"model": str(self._model.path), "messages": self.messages}
        with atomic_write(Path(path)) as file:
            file.write((json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode())


class _Answer:
    """Collects an answer while its tokens become text."""

    def __init__(self, model: Model) -> None:
        self.text = ""
        self.tokens = 0
        self.first_at = self.last_at = time.monotonic()
        self._model = model

    def texts(self, tokens: Iterable[int]) -> Iterator[str]:
        for text in characters(self._model, self._counted(tokens)):
            # Sentencepiece begins with the space that the template has put already.
            said = text if self.text else text.lstrip()
            if said:
                self.text += said
                yield said

    def _counted(self, tokens: Iterable[int]) -> Iterator[int]:
        for token in tokens:
            self.tokens += 1
            self.last_at = time.monotonic()
            if self.tokens == 1:
                self.first_at = self.last_at
            yield token


def _read_at_most(path: Path, size: int) -> bytes:
    """A file's bytes; one more than `size` of a larger one, be it endless."""
    try:
        with path.open("rb") as file:
            return file.read(size + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
