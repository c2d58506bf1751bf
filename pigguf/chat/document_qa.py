"""Questions about documents, answered inside one window, with the places the answer rests on.

    with open_documents("model.gguf", ["notes/", "report.pdf"], RunConfig(ctx=8192)) as chat:
        for text in chat.ask("What was decided?"):
            print(text, end="", flush=True)
        for citation in chat.citations:
            print(citation.number, citation.place)

Contract: if the window holds all documents, all of them are read, in order, in full attention. If not, the
passages nearest the question fill it, in the documents' order, and what is left out is said (logger
"pigguf", and `reading`). The documents come first in the prompt and the questions after them, so that the
cache keeps them from question to question. A citation's place is looked up in the documents, never taken
from the model's words.
Left out: how documents become text (reading/), what a conversation is (chat/conversation.py).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pigguf.chat.conversation import Chat
from pigguf.documents import DocumentCollection, SourceLocation, cut, load_documents
from pigguf.documents.bm25_retrieval import Index
from pigguf.documents.chunking import passage_size
from pigguf.documents.citations import find_quotes
from pigguf.errors import ContextOverflow
from pigguf.inference.engine import Model, SamplingParams, Session
from pigguf.inference.open_context import RunConfig, open_session
from pigguf.progress import SILENT, Progress

RESERVED_ANSWER_TOKENS = 512
"""Room that documents leave for an answer, where --max-tokens does not say how long it may be; a quarter of
a small window."""

GREEDY = SamplingParams(temperature=0)
"""What is asked of a document is not to be invented."""

_MISSES = 32  # passages too long for what is left, until the window counts as full

_INSTRUCTION = (
    "Answer the question from the passages above, and name the passage that says it by its number in "
    "brackets. If none of them says it, say that.\n\nQuestion: "
)
_CITED = re.compile(r"\[(\d+(?:\s*[-–,;]\s*\d+)*)\]")

_log = logging.getLogger("pigguf")


@dataclass(frozen=True)
class RetrievedContext:
    """What of the documents a question was asked over.

    Attributes:
        numbers: of the passages that were read, ascending; they are counted from 1.
        passages: how many there are in all.
    """

    passage_numbers: tuple[int, ...]
    total_passages: int

    @property
    def is_complete(self) -> bool:
        """Everything was read."""
        return len(self.passage_numbers) == self.total_passages


@dataclass(frozen=True)
class Citation:
    """A place in the documents that an answer rests on.

    Attributes:
        number: of the passage.
        place: of the passage, or of the quote in it.
        quote: words the answer shares with the passage, as they stand there; None where the model named
            the passage.
    """

    passage_number: int
    location: SourceLocation
    quote: str | None


class DocumentChat(Chat):
    """A conversation about documents, on one session.

    Args:
        model, session: as for Chat.
        collection: the documents.
        sampling: how tokens are drawn; by default the likeliest always.
        max_tokens: most tokens of an answer; None is up to the window's end.

    Attributes:
        collection: the documents, and the files that could not be read.
        passages: all of them, in order; passage number n is passages[n - 1].
        reading: what the last question was asked over; None before the first.

    Raises:
        TokenizerError: the model has no chat template, or one that is not understood.
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
            for passage in cut(document, passage_size(self.context_length))
        )
        self.retrieved_context: RetrievedContext | None = None
        self._costs: dict[int, int] = {}
        self._index: Index | None = None
        self._asked: list[str] = []  # the questions of this conversation, by themselves
        self._before = ""  # what came before the passages in its first message

    # ---- asking ----------------------------------------------------------------------------------

    def ask(self, text: str, progress: Progress = SILENT) -> Iterator[str]:
        """The answer to a question, as Chat.ask gives it. `reading` is known before its first word.

        Progress hears of "indexing" too, once, where the documents do not fit.

        Raises:
            ContextOverflow: the question and the conversation leave no room for a passage.
            MissingPackage: the documents do not fit, and bm25s is not installed.
        """
        waiting = "".join(document.as_prompt_text() for document in self.documents)
        if not self._has_begun:
            self._asked, self._before = [], waiting
        numbers = self._chosen(text, progress)
        self.retrieved_context = RetrievedContext(tuple(numbers), len(self.passages))
        *before, question = self._conversation(numbers, text)
        self.messages = before
        self._tell_of_what_is_left_out()
        return self._answered(text, super().ask(question["content"].removeprefix(waiting), progress))

    def _answered(self, question: str, texts: Iterator[str]) -> Iterator[str]:
        said = len(self.messages)
        try:
            yield from texts
        finally:
            if len(self.messages) > said:
                self._asked.append(question)

    @property
    def _has_begun(self) -> bool:
        return any(message["role"] == "user" for message in self.messages)

    def _conversation(self, numbers: Iterable[int], question: str) -> list[dict[str, str]]:
        """All messages up to the question, with these passages in front of the first."""
        messages = [dict(message) for message in self.messages]
        waiting = "".join(document.as_prompt_text() for document in self.documents)
        if self._has_begun:
            first = next(message for message in messages if message["role"] == "user")
            first["content"] = self._before + self._over(numbers, self._asked[0])
            return [*messages, {"role": "user", "content": waiting + question}]
        return [*messages, {"role": "user", "content": waiting + self._over(numbers, question)}]

    def _over(self, numbers: Iterable[int], question: str) -> str:
        return "".join(map(self.format_passage, numbers)) + _INSTRUCTION + question

    def format_passage(self, number: int) -> str:
        """A passage as the prompt has it."""
        passage = self.passages[number - 1]
        return f"[{number}] {passage.label}\n{passage.text}\n\n"

    # ---- choosing --------------------------------------------------------------------------------

    def _chosen(self, question: str, progress: Progress) -> list[int]:
        """The passages to read, ascending: all, or as many as fit of those nearest the question."""
        most = self.context_length - self._room_kept
        room = most - self._tokens((), question)
        every = range(1, len(self.passages) + 1)
        if self._may_hold(every, room) and self._tokens(every, question) <= most:
            return list(every)
        numbers = self._nearest(question, room, progress)
        while numbers and self._tokens(sorted(numbers), question) > most:
            numbers.pop()  # counted together, passages may take some tokens more than one by one
        if not numbers:
            raise ContextOverflow(
                f"the window of {self.context_length:,} tokens leaves {max(0, room):,} for documents, too "
                "few for a passage: the rest goes to the question, what was said before, and an answer",
                "begin a new conversation, ask in fewer words, or take a larger context if the model has one",
            )
        return sorted(numbers)

    @property
    def _room_kept(self) -> int:
        return max(self._answer_room, min(self._max_tokens or RESERVED_ANSWER_TOKENS, self.context_length // 4))

    def _tokens(self, numbers: Iterable[int], question: str) -> int:
        """What the whole prompt takes with these passages."""
        return len(self._format.tokenize(self._conversation(numbers, question)))

    def _may_hold(self, numbers: Sequence[int], room: int) -> bool:
        """Whether to count these passages together; where they clearly do not fit, few are counted."""
        characters = sum(
            self.passages[number - 1].stop - self.passages[number - 1].start for number in numbers
        )
        if characters > room * self._model.max_piece_bytes:
            return False
        for number in numbers:
            room -= self._cost(number)
            if room < -len(numbers):  # one by one, each may take a token more
                return False
        return True

    def _cost(self, number: int) -> int:
        if number not in self._costs:
            self._costs[number] = self._format.count_tokens(self.format_passage(number))
        return self._costs[number]

    def _nearest(self, question: str, room: int, progress: Progress) -> list[int]:
        """As many passages as fit, the nearest to the question first."""
        if self._index is None:
            self._index = Index(self.passages, progress)
        scores = self._index.scores(question)
        if self._asked:  # "And when was that?" asks about what the question before it was about
            scores += self._index.scores(self._asked[-1]) / 2
        if not scores.any():
            _log.warning(
                "No passage shares a word with the question: the documents are read from their beginning."
            )
        chosen: list[int] = []
        misses = 0
        for index in (-scores).argsort(kind="stable"):
            number = int(index) + 1
            if self._cost(number) <= room:
                chosen.append(number)
                room -= self._cost(number)
            else:
                misses += 1
                if misses == _MISSES:
                    break
        return chosen

    def _tell_of_what_is_left_out(self) -> None:
        assert self.retrieved_context is not None
        if self.retrieved_context.is_complete:
            return
        read = {self.passages[number - 1].document for number in self.retrieved_context.passage_numbers}
        documents = len(self.collection.documents)
        of_documents = f", from {len(read):,} of {documents:,} documents" if documents > 1 else ""
        _log.warning(
            "The documents do not fit the window of %s tokens. The %s of %s passages nearest the question "
            "are read%s; the rest is left out.",
            f"{self.context_length:,}",
            f"{len(self.retrieved_context.passage_numbers):,}",
            f"{self.retrieved_context.total_passages:,}",
            of_documents,
        )

    # ---- citing ----------------------------------------------------------------------------------

    @property
    def citations(self) -> tuple[Citation, ...]:
        """What the last answer rests on: the passages it names, then the words it shares with some."""
        if self.retrieved_context is None or self.messages[-1]["role"] != "assistant":
            return ()
        answer = self.messages[-1]["content"]
        read = [self.passages[number - 1] for number in self.retrieved_context.passage_numbers]
        named = [
            Citation(number, self.passages[number - 1].location, None)
            for number in _numbers_in(answer)
            if number in self.retrieved_context.passage_numbers
        ]
        quoted = [
            Citation(self.retrieved_context.passage_numbers[quote.passage_index], quote.location, quote.text)
            for quote in find_quotes(answer, read)
        ]
        return (*named, *quoted)


def _numbers_in(answer: str) -> Iterator[int]:
    """The numbers an answer names in brackets, each once: [3], [1, 4], [2-5]."""
    seen: set[int] = set()
    for match in _CITED.finditer(answer):
        for part in re.split("[,;]", match[1]):
            first, *last = (int(number) for number in re.split("[-–]", part))
            for number in range(first, min(last[-1], first + 100) + 1 if last else first + 1):
                if number not in seen:
                    seen.add(number)
                    yield number


# ---- opening -----------------------------------------------------------------------------------------


@contextmanager
def open_documents(
    path: str | Path,
    docs: Iterable[str | Path],
    settings: RunConfig | None = None,
    *,
    sampling: SamplingParams | None = None,
    max_tokens: int | None = None,
    progress: Progress = SILENT,
) -> Iterator[DocumentChat]:
    """Read documents, then open a model to ask it about them.

    Args:
        path: a .gguf file.
        docs: files and folders.
        settings: how the model is run: its window and more.
        sampling, max_tokens: as for DocumentChat.

    Raises:
        TextError, UsageError, ReadError, MissingPackage: as read_documents; no model was opened then.
        GGUFError, UnsupportedModel, ContextOverflow, DoesNotFit, BackendUnavailable: as open_session.
        TokenizerError: the model has no chat template.
    """
    collection = load_documents(docs, progress)
    with open_session(path, settings, progress) as session:
        model = session.context.model
        yield DocumentChat(model, session, collection, sampling=sampling, max_tokens=max_tokens)


def ask(
    model: str | Path,
    docs: Iterable[str | Path],
    question: str,
    settings: RunConfig | None = None,
    *,
    sampling: SamplingParams | None = None,
    max_tokens: int | None = None,
    progress: Progress = SILENT,
) -> Iterator[str]:
    """The answer to one question about documents, as text while it is drawn.

    open_documents answers more than one, and says where an answer stands. Arguments and errors are its.
    """
    with open_documents(
        model, docs, settings, sampling=sampling, max_tokens=max_tokens, progress=progress
    ) as chat:
        yield from chat.ask(question, progress)
