"""Chat: a conversation in one context window, with attached documents and statistics of each answer.

    with Model.open(path) as model, Context(model) as context, context.sequence() as session:
        chat = Chat(model, session, system="Answer briefly.")
        chat.add_document("report.txt")
        for text in chat.ask("What was decided?"):
            print(text, end="", flush=True)

The whole conversation is rendered for each question, and the KV cache keeps the prefix that is unchanged. A
question that does not fit is refused with token counts, or older messages give way by an overflow policy
(context_overflow.py); nothing is truncated silently. A question that fails or is stopped before the first
text of its answer leaves the conversation as it was. An answer that is stopped later stays as far as it was
generated. Not here: chat templates (prompt_format.py), sampling (inference/engine/), documents with citations
(document_qa.py).
"""

from __future__ import annotations

import json
import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pigguf.chat.context_overflow import OVERFLOW_POLICIES, OverflowBudget, OverflowPolicy, system_messages
from pigguf.chat.few_shot import FewShotExample, example_messages
from pigguf.chat.prompt_format import ChatFormat
from pigguf.chat.turn_stats import AnswerText, TurnStats
from pigguf.common.atomic_write import atomic_write
from pigguf.common.text_decoding import decode_text
from pigguf.errors import ContextOverflow, EngineError, UsageError
from pigguf.inference.engine import Model, SamplingParams, Session, StopReason
from pigguf.progress import SILENT, Progress

MIN_ANSWER_TOKENS = 64
"""Tokens of the context window that a question must leave free for its answer."""

_GREEDY = SamplingParams(temperature=0)
_log = logging.getLogger("pigguf")


@dataclass(frozen=True)
class AttachedDocument:
    """A text that is sent with the next question.

    Attributes:
        tokens: how many tokens the text has.
    """

    name: str
    text: str
    tokens: int

    def as_prompt_text(self) -> str:
        """Return the text as it is written into the prompt, between lines with its name."""
        return f"[Document: {self.name}]\n{self.text}\n[End of document: {self.name}]\n\n"


@dataclass(frozen=True)
class ContextUsage:
    """How many tokens of the context window one part of the conversation takes.

    Attributes:
        kind: the message's role, "template" for what the chat template adds, or "document" for an attached
            one.
        text: the message, or the document's name.
    """

    kind: Literal["system", "user", "assistant", "template", "document"]
    text: str
    tokens: int


class Chat:
    """A conversation on one session.

    Args:
        model: the model.
        session: a session of this model, which only the chat uses.
        system: the system prompt; None leaves it to the chat template.
        sampling: how tokens are sampled.
        max_tokens: the most tokens of an answer; None generates up to the end of the window.
        overflow: what to do when the context window is full, before or during an answer: a name of
            OVERFLOW_POLICIES. An answer under a grammar is not continued after an overflow.
        examples: few-shot examples that go before the first question, as many as fit.

    Attributes:
        messages: the conversation so far, {"role": ..., "content": ...}; the system prompt is the first. An
            answer that is being generated is the last, from its first text on.
        documents: documents that are sent with the next question.
        last_turn: statistics of the last answer, None before the first.
        context_length: the context window in tokens.

    Raises:
        TokenizerError: the model has no chat template, or one that is not supported.
        UsageError: there is no such overflow policy.
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
                f"there is no overflow policy {overflow!r}", f"use one of {', '.join(OVERFLOW_POLICIES)}"
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
        self._active_turn: _Turn | None = None  # whose answer is being generated
        self.clear()

    # ---- questions and answers -------------------------------------------------------------------

    def ask(self, text: str, progress: Progress = SILENT) -> Iterator[str]:
        """Yield the answer to a question as text, in whole characters, while it is generated.

        Attached documents go before the question. Closing the iterator, or Ctrl-C, stops the answer.

        Args:
            progress: of the prefill: one stage, "prefill", in tokens.

        Raises:
            ContextOverflow: the question does not fit; the message has the token counts.
            TokenizerError: the chat template refuses the conversation.
        """
        yield from self._stream_answer(self.messages, self._attached_text + text, progress)

    def _stream_answer(
        self,
        history: Sequence[dict[str, str]],
        question: str,
        progress: Progress,
        on_commit: Callable[[], None] = lambda: None,
    ) -> Iterator[str]:
        """Yield the answer to a question; with its first text, both become part of the conversation.

        Args:
            history: the messages before the question.
            on_commit: called once, when the answer has its first text.
        """
        started = time.monotonic()
        turn = self._new_turn(history, {"role": "user", "content": question}, on_commit)
        if not self._fit_to_context(turn, progress):
            raise self._question_overflow(history, turn.question)
        cached_tokens = self._prefill(turn, progress)
        prefilled, prompt_tokens = time.monotonic(), len(turn.prompt)
        self._active_turn = turn

        answer = AnswerText(self._model)
        try:
            for text in answer.stream(self._generate(turn)):
                self._commit(turn, answer.text)
                yield text
        finally:
            # An iterator that was not closed may be collected when the conversation has moved on.
            if turn is self._active_turn:
                self._active_turn = None
                stop_reason = turn.stop_reason or "interrupted"
                if answer.text or stop_reason != "interrupted":
                    self._commit(turn, answer.text)
                self.last_turn = TurnStats(
                    prompt_tokens=prompt_tokens,
                    cached_tokens=cached_tokens,
                    generated_tokens=answer.token_count,
                    prefill_seconds=prefilled - started,
                    first_token_seconds=answer.first_token_at - started,
                    decode_seconds=answer.last_token_at - answer.first_token_at,
                    stop_reason=stop_reason,
                    notices=tuple(turn.notices),
                )

    def _commit(self, turn: _Turn, answer: str) -> None:
        """Make a turn part of the conversation, with its answer as far as it is generated."""
        if not turn.is_committed:
            turn.is_committed = True
            self.documents.clear()
            turn.on_commit()
        self.messages = [*turn.messages, {"role": "assistant", "content": answer}]

    def _new_turn(
        self, history: Sequence[dict[str, str]], question: dict[str, str], on_commit: Callable[[], None]
    ) -> _Turn:
        """Return the conversation with a question at its end, and few-shot examples before the first one."""
        is_first = not has_question(history)
        examples = self._fitting_examples(history, question) if is_first else ()
        messages = [*history, *example_messages(examples), question]
        turn = _Turn(messages, self._format.tokenize(messages), question, on_commit)
        if self._examples and is_first:
            notice = f"{len(examples):,} of {len(self._examples):,} examples go before the question."
            turn.add_notice(notice, logging.INFO if len(examples) == len(self._examples) else logging.WARNING)
        return turn

    def _fitting_examples(
        self, history: Sequence[dict[str, str]], question: dict[str, str]
    ) -> Sequence[FewShotExample]:
        """Return as many of the first examples as leave room for the question and its answer."""
        limit = self.context_length - min(self._max_tokens or MIN_ANSWER_TOKENS, self.context_length // 2)

        def is_too_many(count: int) -> bool:
            messages = [*history, *example_messages(self._examples[:count]), question]
            return len(self._format.tokenize(messages)) > limit

        count = bisect_left(range(1, len(self._examples) + 1), True, key=is_too_many)
        return self._examples[:count]

    def _fit_to_context(self, turn: _Turn, progress: Progress) -> bool:
        """Shorten the turn's conversation by the overflow policy until more of its answer fits.

        Returns:
            False if the policy cannot shorten it enough.
        """
        reserved = 1 if turn.answer_tokens else self._reserved_answer_tokens
        max_prompt_tokens = self.context_length - len(turn.answer_tokens) - reserved
        budget = OverflowBudget(
            context_length=self.context_length,
            max_prompt_tokens=max_prompt_tokens,
            count_tokens=lambda messages: len(self._format.tokenize(messages)),
            generate=lambda messages, limit: self._generate_summary(messages, limit, progress),
        )
        while len(turn.prompt) > max_prompt_tokens:
            shortened = OVERFLOW_POLICIES[self._overflow](turn.messages, budget)
            if shortened is None:
                return False
            turn.messages, turn.shifted_tokens = shortened.messages, shortened.shifted_tokens
            turn.prompt = self._format.tokenize(shortened.messages)
            turn.add_notice(shortened.notice)
        return True

    def _generate_summary(
        self, messages: Sequence[dict[str, str]], max_tokens: int, progress: Progress
    ) -> str:
        self._session.set_prompt(self._format.tokenize(messages), progress)
        return self._model.detokenize(list(self._session.generate(_GREEDY, max_tokens))).strip()

    def _prefill(self, turn: _Turn, progress: Progress) -> int:
        """Make the KV cache hold the turn's prompt and what is generated of its answer.

        Turns that the policy dropped are removed from the cache, and what follows them is shifted. If the
        cache does not hold what follows, or cannot be shifted, it is computed again.

        Returns:
            How many tokens the cache held already.
        """
        tokens, session = turn.prompt + turn.answer_tokens, self._session
        start = session.common_prefix_length(tokens)
        stop, turn.shifted_tokens = start + turn.shifted_tokens, 0
        if start < stop and session.tokens[stop : stop + 1] == tokens[start : start + 1]:
            try:
                session.shift(start, stop)
            except EngineError as error:
                _log.warning("%s: it is computed again", error.message)
        return session.set_prompt(tokens, progress)

    def _generate(self, turn: _Turn) -> Iterator[int]:
        """Yield the tokens of the answer; when the window is full, go on if the policy can make room."""
        has_grammar = self._sampling is not None and self._sampling.grammar is not None
        while True:
            remaining = None if self._max_tokens is None else self._max_tokens - len(turn.answer_tokens)
            for token in self._session.generate(self._sampling, remaining):
                turn.answer_tokens.append(token)
                yield token
            turn.stop_reason = self._session.stop_reason
            if turn.stop_reason != "window" or has_grammar or not self._fit_to_context(turn, SILENT):
                return
            turn.stop_reason = None
            self._prefill(turn, SILENT)

    # ---- what does not fit -----------------------------------------------------------------------

    @property
    def _reserved_answer_tokens(self) -> int:
        return min(MIN_ANSWER_TOKENS, self._max_tokens or MIN_ANSWER_TOKENS, self.context_length // 2)

    def _question_overflow(
        self, history: Sequence[dict[str, str]], question: dict[str, str]
    ) -> ContextOverflow:
        """Return the error for a question that does not fit, even after the overflow policy was applied."""
        fixed = self._fixed_messages(history)
        tokens = len(self._format.tokenize([*fixed, question])) - self._count_tokens(fixed)
        error = self._overflow_error("the message", tokens, history)
        if error is not None:
            return error
        return ContextOverflow(
            f"the context window of {self.context_length:,} tokens is full, and the model cannot summarize "
            "the conversation any shorter",
            "clear the conversation, or use `overflow=shift`, which drops the oldest turns",
        )

    def _fixed_messages(self, history: Sequence[dict[str, str]]) -> Sequence[dict[str, str]]:
        """Return the messages that the overflow policy never drops."""
        return history if self._overflow == "error" else system_messages(history)

    def _overflow_error(
        self, what: str, tokens: int, history: Sequence[dict[str, str]], attached_tokens: int = 0
    ) -> ContextOverflow | None:
        """Return the error that says by how many tokens something does not fit; None if it fits.

        Args:
            what: what is to be added, for the message.
            tokens: its tokens.
            history: the messages before it.
            attached_tokens: tokens of the documents that go before it.
        """
        taken = (
            (self._count_tokens(self._fixed_messages(history)), "for the conversation so far"),
            (attached_tokens, "for the documents before it"),
            (self._reserved_answer_tokens, "for an answer"),
        )
        excess = tokens + sum(count for count, _ in taken) - self.context_length
        if excess <= 0:
            return None
        less = ", ".join(f"{count:,} {purpose}" for count, purpose in taken if count)
        return ContextOverflow(
            f"{what} is {tokens:,} tokens, {excess:,} more than fit: the context window is "
            f"{self.context_length:,}, less {less}",
            "shorten it, clear the conversation, let the oldest turns be dropped or summarized "
            "(`overflow=shift`, `overflow=summarize`), or use a larger context window (`ctx`) if the model "
            "supports one",
        )

    # ---- attached documents ----------------------------------------------------------------------

    @property
    def _attached_text(self) -> str:
        return "".join(document.as_prompt_text() for document in self.documents)

    def add_document(self, path: str | Path) -> AttachedDocument:
        """Attach a UTF-8 text file to the next question.

        Raises:
            UsageError: the file does not exist, or is not text.
            ContextOverflow: it does not fit into what is left of the context window.
        """
        path = Path(path)
        max_bytes = self.context_length * self._model.max_piece_bytes
        data = _read_at_most(path, max_bytes)
        if len(data) > max_bytes:
            raise ContextOverflow(
                f"{path} is over {max_bytes:,} bytes, more than a context window of {self.context_length:,} "
                "tokens can hold",
                "use a part of it, or a larger context window (`ctx`) if the model supports one",
            )
        return self.add_text(path.name, decode_text(data, str(path)))

    def add_text(self, name: str, text: str) -> AttachedDocument:
        """Attach a text to the next question.

        Raises:
            ContextOverflow: it does not fit into what is left of the context window.
        """
        document = AttachedDocument(name, text, self._format.count_tokens(text))
        attached_tokens = sum(other.tokens for other in self.documents)
        error = self._overflow_error(name, document.tokens, self.messages, attached_tokens)
        if error is not None:
            raise error
        self.documents.append(document)
        return document

    # ---- the conversation ------------------------------------------------------------------------

    @property
    def tokens_used(self) -> int:
        """Tokens of the context window that the conversation takes."""
        return self._count_tokens(self.messages)

    def _count_tokens(self, messages: Sequence[dict[str, str]]) -> int:
        if not has_question(messages):  # some templates refuse a conversation without one
            return sum(self._format.count_tokens(message["content"]) for message in messages)
        return len(self._format.tokenize(messages, add_generation_prompt=False))

    def context_usage(self) -> list[ContextUsage]:
        """Return what takes up the context window: each message, the chat template, attached documents."""
        usage = [
            ContextUsage(
                message["role"],  # type: ignore[arg-type]
                message["content"],
                self._format.count_tokens(message["content"]),
            )
            for message in self.messages
        ]
        template_tokens = self.tokens_used - sum(part.tokens for part in usage)
        usage.append(ContextUsage("template", "", template_tokens))
        usage += [ContextUsage("document", document.name, document.tokens) for document in self.documents]
        return usage

    def clear(self) -> None:
        """Remove all messages except the system prompt, the attached documents, and the KV cache."""
        self.messages = [{"role": "system", "content": self._system}] if self._system else []
        self.documents.clear()
        self._active_turn = None
        self._session.truncate(0)

    def save(self, path: str | Path) -> None:
        """Write the conversation as JSON: {"model": ..., "messages": [...]}.

        Raises:
            OutputError: the file cannot be written; an existing one is unchanged.
        """
        value = {"model": str(self._model.path), "messages": self.messages}
        with atomic_write(Path(path)) as file:
            file.write((json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode())


@dataclass
class _Turn:
    """A question and its answer while it is generated.

    Attributes:
        messages: the conversation for the model, the question last.
        prompt: the same as token ids.
        question: the question's message.
        on_commit: called once the turn is part of the chat's conversation.
        answer_tokens: token ids of the answer so far.
        notices: what was done to the conversation to make room.
        shifted_tokens: tokens that the policy removed from the middle of the prompt, and the cache still
            holds.
        stop_reason: why the answer ended; None while it is generated.
        is_committed: whether the turn is part of the chat's conversation.
    """

    messages: list[dict[str, str]]
    prompt: list[int]
    question: dict[str, str]
    on_commit: Callable[[], None]
    answer_tokens: list[int] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    shifted_tokens: int = 0
    stop_reason: StopReason | None = None
    is_committed: bool = False

    def add_notice(self, notice: str, level: int = logging.WARNING) -> None:
        """Keep a notice for the statistics, and log it."""
        self.notices.append(notice)
        _log.log(level, notice)


def has_question(messages: Sequence[dict[str, str]]) -> bool:
    """Return whether a conversation has a message of the user."""
    return any(message["role"] == "user" for message in messages)


def _read_at_most(path: Path, size: int) -> bytes:
    """Return a file's bytes, or its first `size` + 1 if it is larger, which may be endless."""
    try:
        with path.open("rb") as file:
            return file.read(size + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
