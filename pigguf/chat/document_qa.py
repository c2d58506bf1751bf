"""DocumentChat: questions about documents, answered in one context window, with citations of their sources.

    with open_documents("model.gguf", ["notes/", "report.pdf"], RunConfig(ctx=8192)) as chat:
        for text in chat.ask("What was decided?"):
            print(text, end="", flush=True)
        for citation in chat.citations:
            print(citation.passage_number, citation.location)

If the context window holds all documents, all of them are in the prompt, in order. If not, it is filled with
the passages that rank highest for the question (BM25), in the documents' order, and what is missing is logged
("pigguf") and in `retrieved_context`. Documents come first in the prompt and questions after them, so that
the KV cache keeps the documents from question to question. The location of a citation is looked up in the
documents, never taken from the model's answer.
Not here: text extraction, passages, BM25 (documents/), the conversation itself (conversation.py).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pigguf.chat.conversation import Chat, has_question
from pigguf.documents import DocumentCollection, SourceLocation, load_documents, split_document
from pigguf.documents.bm25_retrieval import BM25Index
from pigguf.documents.chunking import passage_size
from pigguf.documents.citations import find_quotes
from pigguf.errors import ContextOverflow
from pigguf.inference.engine import Model, SamplingParams, Session
from pigguf.inference.open_context import open_session
from pigguf.inference.run_config import RunConfig
from pigguf.progress import SILENT, Progress

RESERVED_ANSWER_TOKENS = 512
"""Tokens that documents leave free for an answer without `max_tokens`; in a small window, a quarter of it."""

GREEDY = SamplingParams(temperature=0)
"""Always the most likely token: answers about documents should not be creative."""

_MAX_MISSES = 32  # passages that are too long for what is left of the window until it counts as full

_INSTRUCTION = (
    "Answer the question from the passages above, and name the passage that says it by its number in "
    "brackets. If none of them says it, say that.\n\nQuestion: "
)
_CITED_NUMBERS = re.compile(r"\[(\d+(?:\s*[-–,;]\s*\d+)*)\]")

_log = logging.getLogger("pigguf")


@dataclass(frozen=True)
class RetrievedContext:
    """The passages of the documents that are in the prompt of a question.

    Attributes:
        passage_numbers: their numbers, ascending, counted from 1.
        total_passages: how many passages the documents have.
    """

    passage_numbers: tuple[int, ...]
    total_passages: int

    @property
    def is_complete(self) -> bool:
        """Whether the documents are in the prompt as a whole."""
        return len(self.passage_numbers) == self.total_passages


@dataclass(frozen=True)
class Citation:
    """A source of an answer.

    Attributes:
        passage_number: the number of the passage, counted from 1.
        location: of the passage, or of the quote in it.
        quote: words that the answer shares with the passage, as they are written there; None if the model
            named the passage.
    """

    passage_number: int
    location: SourceLocation
    quote: str | None


class DocumentChat(Chat):
    """A conversation about documents, on one session.

    Args:
        model: the model.
        session: a session of this model, which only the chat uses.
        collection: the documents.
        sampling: how tokens are sampled; by default always the most likely one.
        max_tokens: the most tokens of an answer; None generates up to the end of the window.

    Attributes:
        collection: the documents, and the files that could not be read.
        passages: the passages of all documents, in order; passage number n is passages[n - 1].
        retrieved_context: the passages in the prompt of the last answer, from its first text on; None before
            the first answer.
        pending_context: the passages for the last call of `ask`, until its answer has text or fails; None
            then.

    Raises:
        TokenizerError: the model has no chat template, or one that is not supported.
    """

    def __init__(
        self,
        model: Model,
        session: Session,
        collection: DocumentCollection,
        *,
        sampling: SamplingParams | None = None,
        max_tokens: int | None = None,
    ) -> None:
        super().__init__(model, session, sampling=sampling or GREEDY, max_tokens=max_tokens)
        self.collection = collection
        self.passages = tuple(
            passage
            for document in collection.documents
            for passage in split_document(document, passage_size(self.context_length))
        )
        self.retrieved_context: RetrievedContext | None = None
        self.pending_context: RetrievedContext | None = None
        self._passage_tokens: dict[int, int] = {}  # passage number -> tokens
        self._index: BM25Index | None = None
        self._questions: list[str] = []  # of this conversation, without passages
        self._first_attached_text = ""  # attached documents before the passages in the first message

    # ---- questions -------------------------------------------------------------------------------

    def ask(self, text: str, progress: Progress = SILENT) -> Iterator[str]:
        """Return the answer to a question as an iterator of text, as Chat.ask.

        The passages are selected at once, as `pending_context`. They and the question become part of the
        conversation with the first text of the answer: a question that is interrupted before that leaves the
        conversation, `retrieved_context` and `citations` as they were.

        Args:
            progress: of the prefill, and of the stage "indexing" the first time the documents do not fit.

        Raises:
            ContextOverflow: the question and the conversation leave no room for a passage.
            MissingPackage: the documents do not fit, and bm25s is not installed.
        """
        numbers = self._select_passages(text, progress)
        self.pending_context = RetrievedContext(tuple(numbers), len(self.passages))
        self._warn_if_incomplete(self.pending_context)
        return self._ask_over(self.pending_context, text, progress)

    def _ask_over(self, context: RetrievedContext, question: str, progress: Progress) -> Iterator[str]:
        *history, message = self._conversation(context.passage_numbers, question)
        attached_text, is_first = self._attached_text, not has_question(self.messages)

        def commit() -> None:
            self.retrieved_context, self.pending_context = context, None
            if is_first:
                self._questions, self._first_attached_text = [question], attached_text
            else:
                self._questions.append(question)

        try:
            yield from self._stream_answer(history, message["content"], progress, commit)
        finally:
            if self.pending_context is context:
                self.pending_context = None

    def _conversation(self, passage_numbers: Iterable[int], question: str) -> list[dict[str, str]]:
        """Return all messages up to the question, with these passages at the beginning of the first one."""
        messages = [dict(message) for message in self.messages]
        if not has_question(messages):
            content = self._attached_text + self._question_over(passage_numbers, question)
            return [*messages, {"role": "user", "content": content}]
        first = next(message for message in messages if message["role"] == "user")
        first["content"] = self._first_attached_text + self._question_over(
            passage_numbers, self._questions[0]
        )
        return [*messages, {"role": "user", "content": self._attached_text + question}]

    def _question_over(self, passage_numbers: Iterable[int], question: str) -> str:
        return "".join(map(self.format_passage, passage_numbers)) + _INSTRUCTION + question

    def format_passage(self, number: int) -> str:
        """Return a passage as it is written into the prompt, with its number and its location."""
        passage = self.passages[number - 1]
        return f"[{number}] {passage.label}\n{passage.text}\n\n"

    # ---- selection of passages -------------------------------------------------------------------

    def _select_passages(self, question: str, progress: Progress) -> list[int]:
        """Return the numbers of the passages for a question, ascending: all, or the best ones that fit."""
        max_prompt_tokens = self.context_length - self._answer_budget
        available = max_prompt_tokens - self._prompt_tokens((), question)
        all_numbers = range(1, len(self.passages) + 1)
        if self._may_fit(all_numbers, available) and (
            self._prompt_tokens(all_numbers, question) <= max_prompt_tokens
        ):
            return list(all_numbers)
        numbers = self._best_passages(question, available, progress)
        # Tokenized together, passages may have a few tokens more than one by one.
        while numbers and self._prompt_tokens(sorted(numbers), question) > max_prompt_tokens:
            numbers.pop()
        if not numbers:
            raise ContextOverflow(
                f"the context window of {self.context_length:,} tokens leaves {max(0, available):,} for "
                "documents, too few for a passage: the question, the conversation so far and the answer take "
                "the rest",
                "start a new conversation, shorten the question, or use a larger context window (`ctx`) if "
                "the model supports one",
            )
        return sorted(numbers)

    @property
    def _answer_budget(self) -> int:
        wanted = min(self._max_tokens or RESERVED_ANSWER_TOKENS, self.context_length // 4)
        return max(self._reserved_answer_tokens, wanted)

    def _prompt_tokens(self, passage_numbers: Iterable[int], question: str) -> int:
        """Return how many tokens the whole prompt has with these passages."""
        return len(self._format.tokenize(self._conversation(passage_numbers, question)))

    def _may_fit(self, passage_numbers: Sequence[int], available: int) -> bool:
        """Return whether to tokenize these passages together; False, cheaply, if they clearly do not fit."""
        characters = sum(
            self.passages[number - 1].stop - self.passages[number - 1].start for number in passage_numbers
        )
        if characters > available * self._model.max_piece_bytes:
            return False
        for number in passage_numbers:
            available -= self._count_passage_tokens(number)
            if available < -len(passage_numbers):  # one by one, each may have a token more
                return False
        return True

    def _count_passage_tokens(self, number: int) -> int:
        if number not in self._passage_tokens:
            self._passage_tokens[number] = self._format.count_tokens(self.format_passage(number))
        return self._passage_tokens[number]

    def _best_passages(self, question: str, available: int, progress: Progress) -> list[int]:
        """Return the numbers of as many passages as fit, those that rank highest for the question first."""
        if self._index is None:
            self._index = BM25Index(self.passages, progress)
        scores = self._index.scores(question)
        # A follow-up such as "And when was that?" refers to the question before it.
        if self._questions and has_question(self.messages):
            scores += self._index.scores(self._questions[-1]) / 2
        if not scores.any():
            _log.warning(
                "No passage shares a word with the question: the documents are read from their beginning."
            )
        selected: list[int] = []
        misses = 0
        for index in (-scores).argsort(kind="stable"):
            number = int(index) + 1
            tokens = self._count_passage_tokens(number)
            if tokens <= available:
                selected.append(number)
                available -= tokens
            else:
                misses += 1
                if misses == _MAX_MISSES:
                    break
        return selected

    def _warn_if_incomplete(self, context: RetrievedContext) -> None:
        if context.is_complete:
            return
        documents = {self.passages[number - 1].document for number in context.passage_numbers}
        total = len(self.collection.documents)
        _log.warning(
            "The documents do not fit into the context window of %s tokens: the prompt has the %s of %s "
            "passages that match the question best%s.",
            f"{self.context_length:,}",
            f"{len(context.passage_numbers):,}",
            f"{context.total_passages:,}",
            f", from {len(documents):,} of {total:,} documents" if total > 1 else "",
        )

    # ---- citations -------------------------------------------------------------------------------

    @property
    def citations(self) -> tuple[Citation, ...]:
        """The sources of the last answer: passages that it names, then those that it shares words with."""
        if self.retrieved_context is None or not self.messages or self.messages[-1]["role"] != "assistant":
            return ()
        answer = self.messages[-1]["content"]
        numbers = self.retrieved_context.passage_numbers
        named = [
            Citation(number, self.passages[number - 1].location, None)
            for number in _cited_numbers(answer)
            if number in numbers
        ]
        quoted = [
            Citation(numbers[quote.passage_index], quote.location, quote.text)
            for quote in find_quotes(answer, [self.passages[number - 1] for number in numbers])
        ]
        return (*named, *quoted)


def _cited_numbers(answer: str) -> Iterator[int]:
    """Yield the numbers that an answer has in brackets, each once: [3], [1, 4], [2-5]."""
    seen: set[int] = set()
    for match in _CITED_NUMBERS.finditer(answer):
        for part in re.split("[,;]", match[1]):
            first, *last = (int(number) for number in re.split("[-–]", part))
            for number in range(first, min(last[-1], first + 100) + 1 if last else first + 1):
                if number not in seen:
                    seen.add(number)
                    yield number


# ---- opening -------------------------------------------------------------------------------------


@contextmanager
def open_documents(
    path: str | Path,
    docs: Iterable[str | Path],
    config: RunConfig | None = None,
    *,
    sampling: SamplingParams | None = None,
    max_tokens: int | None = None,
    progress: Progress = SILENT,
) -> Iterator[DocumentChat]:
    """Read documents, then open a model, for a block that asks questions about them.

    Args:
        path: a .gguf file.
        docs: files and folders.
        config: how the model is run: its context window and more.
        sampling, max_tokens: as DocumentChat.
        progress: of reading the documents and of loading the model.

    Yields:
        The conversation.

    Raises:
        TextError, UsageError, ReadError, MissingPackage: as load_documents; no model is opened then.
        GGUFError, UnsupportedModel, ContextOverflow, DoesNotFit, BackendUnavailable: as open_session.
        TokenizerError: the model has no chat template.
    """
    collection = load_documents(docs, progress)
    with open_session(path, config, progress) as session:
        model = session.context.model
        yield DocumentChat(model, session, collection, sampling=sampling, max_tokens=max_tokens)


def ask(
    model: str | Path,
    docs: Iterable[str | Path],
    question: str,
    config: RunConfig | None = None,
    *,
    sampling: SamplingParams | None = None,
    max_tokens: int | None = None,
    progress: Progress = SILENT,
) -> Iterator[str]:
    """Yield the answer to one question about documents as text, while it is generated.

    open_documents is for several questions, and for citations.

    Args:
        model: a .gguf file.
        question: the question.
        docs, config, sampling, max_tokens, progress: as open_documents.

    Raises:
        As open_documents and DocumentChat.ask.
    """
    with open_documents(
        model, docs, config, sampling=sampling, max_tokens=max_tokens, progress=progress
    ) as chat:
        yield from chat.ask(question, progress)
