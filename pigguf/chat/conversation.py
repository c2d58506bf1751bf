"""A conversation inside one context window: messages, documents, answers, and what they take up.

    with Model.open(path) as model, Context(model) as context, context.sequence() as session:
        chat = Chat(model, session, system="Answer briefly.")
        chat.add_document("report.txt")
        for text in chat.ask("What was decided?"):
            print(text, end="", flush=True)

Contract: the conversation is rendered anew for each question and the cache keeps what it already holds
of it. A question that does not fit is refused with token counts, or the conversation gives way to it by
a policy of chat/context_overflow.py; nothing is ever cut, and nothing goes unsaid. A question that failed or was
stopped before the first word leaves the conversation as it was; an answer stopped later stays as far as
it was said.
Left out: how messages become tokens (chat/prompt_format.py), how tokens are drawn (inference/engine/sampling.py).
"""

from __future__ import annotations

import json
import logging
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pigguf.chat.context_overflow import OVERFLOW_POLICIES, OverflowPolicy, OverflowBudget, system_prompt
from pigguf.chat.few_shot import FewShotExample, example_messages
from pigguf.chat.prompt_format import ChatFormat
from pigguf.common.files import atomic_write
from pigguf.common.text_decoding import decode_text
from pigguf.errors import ContextOverflow, EngineError, UsageError
from pigguf.inference.detokenizer import stream_text
from pigguf.inference.engine import Model, SamplingParams, Session
from pigguf.inference.engine.session import StopReason
from pigguf.progress import SILENT, Progress

MIN_ANSWER_TOKENS = 64
"""Tokens of the window that a question must leave free for its answer."""

_GREEDY = SamplingParams(temperature=0)
_log = logging.getLogger("pigguf")


@dataclass(frozen=True)
class AttachedDocument:
    """A text that goes in with the next question; `tokens` is what it takes of the window."""

    name: str
    text: str
    tokens: int

    def as_prompt_text(self) -> str:
        return f"[Document: {self.name}]\n{self.text}\n[End of document: {self.name}]\n\n"


@dataclass(frozen=True)
class TurnStats:
    """One question and its answer in numbers.

    Attributes:
        prompt_tokens: the whole prompt; cached_tokens: how many of them the cache held already.
        answer_tokens: tokens drawn.
        prefill_seconds: reading the prompt; first_token_seconds: from the question to the answer's first
            token; decode_seconds: from the first token to the last.
        stop_reason: "end", "length" (max_tokens), "window" (it is full) or "interrupted".
        notices: what was done to the conversation to make room, each in words; also told the logger
            "pigguf" at once.
    """

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    prefill_seconds: float
    first_token_seconds: float
    decode_seconds: float
    stop_reason: StopReason
    notices: tuple[str, ...] = ()

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens a second, of those that had to be read."""
        return (self.prompt_tokens - self.cached_tokens) / max(self.prefill_seconds, 1e-9)

    @property
    def decode_tokens_per_second(self) -> float:
        """Answer tokens a second, once the first is there."""
        return max(self.generated_tokens - 1, 0) / max(self.decode_seconds, 1e-9)


@dataclass(frozen=True)
class ContextUsage:
    """What one part of the conversation takes of the window."""

    kind: Literal["system", "user", "assistant", "template", "document"]
    text: str
    tokens: int


class Chat:
    """A conversation on one session.

    Args:
        model, session: the session must be one of the model's, and is the chat's alone.
        system: the system prompt, or None for whatever the template does without one.
        sampling: how tokens are drawn.
        max_tokens: most tokens of an answer; None is up to the window's end.
        overflow: what to do when the window is full, before an answer or within one: a name of
            overflow.POLICIES. An answer under a grammar is not taken up again: there it ends.
        examples: questions with their answers that stand before the first question, as many of them as fit.

    Attributes:
        messages: the conversation so far, {"role": ..., "content": ...}; the system prompt is the first.
        documents: what goes in with the next question.
        last_turn: the last answer in numbers, None before the first.
        context_length: the window in tokens.

    Raises:
        TokenizerError: the model has no chat template, or one that is not understood.
        UsageError: there is no such policy.
    """

    def __init__(
        self,
        model: Model,
        session: Session,
        *,
        system: str | None = None,
        sampling: SamplingParams | None = None,
        max_tokens: int | None = None,
        overflow: OverflowPolicy = "error",
        examples: Sequence[FewShotExample] = (),
    ) -> None:
        if overflow not in OVERFLOW_POLICIES:
            raise UsageError(
                f"there is no policy {overflow!r} for a full window", f"one of {', '.join(OVERFLOW_POLICIES)}"
            )
        self.messages: list[dict[str, str]] = []
        self.documents: list[AttachedDocument] = []
        self.last_turn: TurnStats | None = None
        self.context_length = session.n_past + session.tokens_left
        self._model = model
        self._session = session
        self._system = system
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._overflow = overflow
        self._examples = examples
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
        begun = time.monotonic()
        question = {"role": "user", "content": "".join(d.as_prompt_text() for d in self.documents) + text}
        draft = self._draft(question)
        if not self._fit(draft, progress):
            raise self._refusal(question)
        cached = self._read(draft, progress)
        read, prompt_tokens = time.monotonic(), len(draft.prompt)

        answer = _Answer(self._model)
        try:
            yield from answer.texts(self._draw(draft))
        finally:
            stop_reason = draft.stop_reason or "interrupted"
            if answer.text or stop_reason != "interrupted":
                self.messages = [*draft.messages, {"role": "assistant", "content": answer.text}]
                self.documents.clear()
            self.last_turn = TurnStats(
                prompt_tokens=prompt_tokens,
                cached_tokens=cached,
                generated_tokens=answer.tokens,
                prefill_seconds=read - begun,
                first_token_seconds=answer.first_at - begun,
                decode_seconds=answer.last_at - answer.first_at,
                stop_reason=stop_reason,
                notices=tuple(draft.notices),
            )

    def _draft(self, question: dict[str, str]) -> _Draft:
        """The conversation with a question at its end, and examples before the first one."""
        has_begun = _has_question(self.messages)
        examples = () if has_begun else self._fitting_examples(question)
        messages = [*self.messages, *example_messages(examples), question]
        draft = _Draft(messages, self._format.tokenize(messages))
        if self._examples and not has_begun:
            fit = f"{len(examples):,} of {len(self._examples):,} examples go before the question."
            draft.tell(fit, logging.INFO if len(examples) == len(self._examples) else logging.WARNING)
        return draft

    def _fitting_examples(self, question: dict[str, str]) -> Sequence[FewShotExample]:
        """The first of the examples, as many as leave room for the question and its answer."""
        room = self.context_length - min(self._max_tokens or MIN_ANSWER_TOKENS, self.context_length // 2)

        def is_too_much(count: int) -> bool:
            messages = [*self.messages, *example_messages(self._examples[:count]), question]
            return len(self._format.tokenize(messages)) > room

        fits = bisect_left(range(1, len(self._examples) + 1), True, key=is_too_much)
        return self._examples[:fits]

    def _fit(self, draft: _Draft, progress: Progress) -> bool:
        """Make the draft fit into the window, with room for more of its answer; False where it cannot be."""
        room = 1 if draft.answer else self._answer_room
        most = self.context_length - len(draft.answer) - room
        space = OverflowBudget(
            context_length=self.context_length,
            max_prompt_tokens=most,
            count_tokens=lambda messages: len(self._format.tokenize(messages)),
            generate=lambda messages, limit: self._write(messages, limit, progress),
        )
        while len(draft.prompt) > most:
            relief = OVERFLOW_POLICIES[self._overflow](draft.messages, space)
            if relief is None:
                return False
            draft.messages, draft.moved = relief.messages, relief.shifted_tokens
            draft.prompt = self._format.tokenize(relief.messages)
            draft.tell(relief.notice)
        return True

    def _write(self, messages: Sequence[dict[str, str]], limit: int, progress: Progress) -> str:
        self._session.set_prompt(self._format.tokenize(messages), progress)
        return self._model.detokenize(list(self._session.generate(_GREEDY, limit))).strip()

    def _read(self, draft: _Draft, progress: Progress) -> int:
        """Make the cache hold the draft and what is said of its answer; how much of it was there already.

        Turns that were left out are taken out of the cache, and what follows them moves up. Where it is
        not what follows in the draft, or the cache cannot be moved, it is read again.
        """
        tokens, session = draft.prompt + draft.answer, self._session
        start = session.common_prefix_length(tokens)
        stop, draft.moved = start + draft.moved, 0
        if start < stop and session.tokens[stop : stop + 1] == tokens[start : start + 1]:
            try:
                session.shift(start, stop)
            except EngineError as error:
                _log.warning("%s: it is read again", error.message)
        return session.set_prompt(tokens, progress)

    def _draw(self, draft: _Draft) -> Iterator[int]:
        """The answer's tokens; a full window gives way by the policy, as long as there is what to give up."""
        is_free = self._sampling is None or self._sampling.grammar is None
        while True:
            left = None if self._max_tokens is None else self._max_tokens - len(draft.answer)
            for token in self._session.generate(self._sampling, left):
                draft.answer.append(token)
                yield token
            draft.stop_reason = self._session.stop_reason
            if draft.stop_reason != "window" or not is_free or not self._fit(draft, SILENT):
                return
            draft.stop_reason = None
            self._read(draft, SILENT)

    @property
    def _answer_room(self) -> int:
        return min(MIN_ANSWER_TOKENS, self._max_tokens or MIN_ANSWER_TOKENS, self.context_length // 2)

    def _refusal(self, question: dict[str, str]) -> ContextOverflow:
        tokens = len(self._format.tokenize([*self._kept, question])) - self._taken(self._kept)
        refusal = self._too_much("the message", tokens, waiting=0)
        if refusal is not None:
            return refusal
        return ContextOverflow(
            f"the window of {self.context_length:,} tokens is full, and the model makes no shorter summary "
            "of what is in it",
            "clear the conversation, or take the policy shift, which leaves the oldest turns out",
        )

    @property
    def _kept(self) -> list[dict[str, str]]:
        """What of the conversation does not give way to a question."""
        return self.messages if self._overflow == "error" else system_prompt(self.messages)

    def _too_much(self, what: str, tokens: int, waiting: int) -> ContextOverflow | None:
        """The error that says by how much something does not fit, None if it does."""
        shares = (
            (self._taken(self._kept), "for the conversation so far"),
            (waiting, "for the documents before it"),
            (self._answer_room, "for an answer"),
        )
        over = tokens + sum(taken for taken, _ in shares) - self.context_length
        if over <= 0:
            return None
        less = ", ".join(f"{taken:,} {purpose}" for taken, purpose in shares if taken)
        return ContextOverflow(
            f"{what} is {tokens:,} tokens, {over:,} more than fit: the window is {self.context_length:,}, "
            f"less {less}",
            "shorten it, clear the conversation, let its oldest turns go (overflow shift or summarize), or "
            "take a larger context if the model has one",
        )

    # ---- documents -------------------------------------------------------------------------------

    def add_document(self, path: str | Path) -> AttachedDocument:
        """Read a UTF-8 text file that goes in with the next question.

        Raises:
            UsageError: there is no such file, or it is not text.
            ContextOverflow: it cannot fit into what is left of the window.
        """
        path = Path(path)
        # A token is at most so many bytes: more than this cannot fit, whatever it says.
        most = self.context_length * self._model.max_piece_bytes
        data = _read_at_most(path, most)
        if len(data) > most:
            raise ContextOverflow(
                f"{path} is over {most:,} bytes, more than a window of {self.context_length:,} tokens holds",
                "take a part of it, or a larger context if the model has one",
            )
        return self.add_text(path.name, decode_text(data, str(path)))

    def add_text(self, name: str, text: str) -> AttachedDocument:
        """Like add_document, for a text that is no file.

        Raises:
            ContextOverflow: it cannot fit into what is left of the window.
        """
        document = AttachedDocument(name, text, self._format.count_tokens(text))
        waiting = sum(other.tokens for other in self.documents)
        refusal = self._too_much(name, document.tokens, waiting)
        if refusal is not None:
            raise refusal
        self.documents.append(document)
        return document

    # ---- the window ------------------------------------------------------------------------------

    @property
    def tokens_used(self) -> int:
        """Tokens of the window that the conversation so far takes."""
        return self._taken(self.messages)

    def _taken(self, messages: Sequence[dict[str, str]]) -> int:
        if not _has_question(messages):  # templates may demand one
            return sum(self._format.count_tokens(message["content"]) for message in messages)
        return len(self._format.tokenize(messages, add_generation_prompt=False))

    def context_usage(self) -> list[ContextUsage]:
        """What takes up the window: each message, the template around them, and waiting documents."""
        shares = [
            ContextUsage(message["role"], message["content"], self._format.count_tokens(message["content"]))  # type: ignore[arg-type]
            for message in self.messages
        ]
        template = self.tokens_used - sum(share.tokens for share in shares)
        shares.append(ContextUsage("template", "", template))
        shares += [ContextUsage("document", document.name, document.tokens) for document in self.documents]
        return shares

    def clear(self) -> None:
        """Forget everything but the system prompt."""
        self.messages = [{"role": "system", "content": self._system}] if self._system else []
        self.documents.clear()
        self._session.truncate(0)

    def save(self, path: str | Path) -> None:
        """Write the conversation as JSON: {"model": ..., "messages": [...]}.

        Raises:
            OutputError: the file cannot be written; an older one is as it was.
        """
        value = {"model": str(self._model.path), "messages": self.messages}
        with atomic_write(Path(path)) as file:
            file.write((json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode())


@dataclass
class _Draft:
    """A question on its way to its answer.

    Attributes:
        messages: what the model gets, the question last; prompt: the same in tokens.
        answer: tokens of the answer so far.
        moved: tokens that were taken out of the middle of the prompt and are in the cache yet.
        stop_reason: why the answer ended, None while it is drawn.
    """

    messages: list[dict[str, str]]
    prompt: list[int]
    answer: list[int] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    moved: int = 0
    stop_reason: StopReason | None = None

    def tell(self, notice: str, level: int = logging.WARNING) -> None:
        self.notices.append(notice)
        _log.log(level, notice)


class _Answer:
    """Collects an answer while its tokens become text."""

    def __init__(self, model: Model) -> None:
        self.text = ""
        self.tokens = 0
        self.first_at = self.last_at = time.monotonic()
        self._model = model

    def texts(self, tokens: Iterable[int]) -> Iterator[str]:
        for text in stream_text(self._model, self._counted(tokens)):
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


def _has_question(messages: Sequence[dict[str, str]]) -> bool:
    return any(message["role"] == "user" for message in messages)


def _read_at_most(path: Path, size: int) -> bytes:
    """A file's bytes; one more than `size` of a larger one, be it endless."""
    try:
        with path.open("rb") as file:
            return file.read(size + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
