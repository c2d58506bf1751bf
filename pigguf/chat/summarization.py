"""A document in few words: in one pass where the window holds it, else by a tree of passes.

    summary = pigguf.summarize("model.gguf", "report.pdf", length="short")
    print(summary.text)

Contract: all of the document is read. What does not fit is cut at the borders of paragraphs into parts that
fill the window; each is summarized, then the summaries are, together or again in parts, until one remains.
That it took parts is said (logger "pigguf", and `parts`).
Left out: how documents become text (reading/), how much of what matters a model finds.
Source: Wu et al., "Recursively Summarizing Books with Human Feedback" (arXiv 2109.10862).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, get_args

from pigguf.chat.document_qa import GREEDY
from pigguf.chat.prompt_format import ChatFormat
from pigguf.documents import MAX_CHARACTERS, Document, Passage, SourceLocation, load_document
from pigguf.documents.chunking import ends_a_paragraph, paragraphs, passage_size
from pigguf.errors import ContextOverflow, UsageError
from pigguf.inference.detokenizer import stream_text
from pigguf.inference.engine import SamplingParams, Session, StopReason
from pigguf.inference.open_context import RunConfig, open_session
from pigguf.progress import SILENT, Progress, Unit, stage

SummaryLength = Literal["short", "medium", "long"]
SummaryStyle = Literal["prose", "bullets"]
Item = TypeVar("Item")

SUMMARY_WORDS: dict[SummaryLength, int] = {"short": 60, "medium": 180, "long": 500}
"""Words of a summary."""

_STYLES: dict[SummaryStyle, str] = {
    "prose": "in about {words} words",
    "bullets": "as a list of bullet points, in about {words} words",
}
_PART_TOKENS = 512  # of a part's summary at most; an eighth of a small window
_MARGIN = 16  # tokens: passages may take a few more together than one by one
_JOIN = 2  # tokens that may stand between two passages

_log = logging.getLogger("pigguf")


@dataclass(frozen=True)
class SummarizedPart:
    """A stretch of the document that was read in one pass.

    Attributes:
        summary: of it alone; the whole one's where there is one part.
        stop_reason: "end", or why the summary was cut.
    """

    location: SourceLocation
    summary: str
    stop_reason: StopReason


@dataclass(frozen=True)
class Summary:
    """
    Attributes:
        text: the summary.
        parts: of the document, in order.
        passes: how many the tree took, the last one too.
        stop_reason: "end", or "length" and "window" where it was cut.
    """

    text: str
    parts: tuple[SummarizedPart, ...]
    passes: int
    stop_reason: StopReason


class Summarizer:
    """Summarizes documents on one session.

    Args:
        session: the summarizer's alone.
        length: words, or a name of LENGTHS.
        style: prose or bullets.
        sampling: how tokens are drawn; by default the likeliest always.
        max_tokens: most tokens of the summary; None is what its length takes.

    Attributes:
        summary: the last one, once its texts were drawn to the end.

    Raises:
        UsageError: no such length or style.
        TokenizerError: the model has no chat template.
        ContextOverflow: the window is too small for a tree.
    """

    def __init__(
        self,
        session: Session,
        *,
        length: SummaryLength | int = "medium",
        style: SummaryStyle = "prose",
        sampling: SamplingParams | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self.summary: Summary | None = None
        self._words = _words(length)
        self._style = _checked_style(style)
        self._sampling = sampling or GREEDY
        self._model = model = session.context.model
        self._session = session
        self._format = ChatFormat(model)
        self._window = session.n_past + session.tokens_left
        # Two tokens a word, and room for the words "about" allows
        self._most = min(2 * self._words + 32, self._window // 4, max_tokens or self._window)
        self._part_most = min(_PART_TOKENS, self._window // 8)
        asks = self._of_whole(""), self._of_part(""), self._of_summaries("")
        frame = max(len(self._tokens(ask)) for ask in asks)
        self._room = self._window - frame - max(self._most, self._part_most) - _MARGIN
        if self._room < 3 * self._part_most:
            raise ContextOverflow(
                f"a window of {self._window:,} tokens is too small to summarize in",
                "take a larger context, or a shorter --length",
            )

    # ---- the tree --------------------------------------------------------------------------------

    def stream(self, document: Document, progress: Progress = SILENT) -> Iterator[str]:
        """The summary as text while it is drawn, once its parts are done; then it is in `summary`.

        Progress hears of each level of the tree, in tokens.
        """
        self.summary = None
        passages = self._parts_of(document)
        if len(passages) == 1:
            text = yield from self._last(self._of_whole(passages[0].text), progress)
            only = SummarizedPart(passages[0].location, text, self._stop_reason)
            self.summary = Summary(text, (only,), 1, self._stop_reason)
            return
        self._tell_of_parts(document, len(passages))
        done = self._each([passage.text for passage in passages], progress)
        parts = tuple(SummarizedPart(passage.location, *part) for passage, part in zip(passages, done, strict=True))
        passes = len(done)
        while len(texts := self._joined([summary for summary, _ in done])) > 1:
            done = self._each(texts, progress)
            passes += len(done)
        text = yield from self._last(self._of_summaries(texts[0]), progress)
        self.summary = Summary(text, parts, passes + 1, self._stop_reason)

    def _each(self, texts: Sequence[str], progress: Progress) -> list[tuple[str, StopReason]]:
        """The summary of each text of one level, and why it ended."""
        asks = [self._of_part(text) for text in texts]
        lengths = [len(self._tokens(ask)) for ask in asks]
        done: list[tuple[str, StopReason]] = []
        with stage(progress, f"reading {len(texts)} parts", sum(lengths), "tokens"):
            for ask, length in zip(asks, lengths, strict=True):
                summary = "".join(self._pass(ask, self._part_most, _Within(progress, length)))
                done.append((summary, self._stop_reason))
        return done

    def _last(self, ask: str, progress: Progress) -> Generator[str, None, str]:
        """The pass whose words are the summary; it returns them together."""
        text = ""
        for piece in self._pass(ask, self._most, progress):
            text += piece
            yield piece
        return text

    def _pass(self, ask: str, most: int, progress: Progress) -> Iterator[str]:
        self._session.set_prompt(self._tokens(ask), progress)
        begun = False
        for piece in stream_text(self._model, self._session.generate(self._sampling, most)):
            said = piece if begun else piece.lstrip()
            begun = begun or bool(said)
            if said:
                yield said

    @property
    def _stop_reason(self) -> StopReason:
        return self._session.stop_reason or "interrupted"

    def _tell_of_parts(self, document: Document, parts: int) -> None:
        _log.warning(
            "%s does not fit the window of %s tokens: it is summarized in %s parts, and the whole from their "
            "summaries.",
            document.path,
            f"{self._window:,}",
            f"{parts:,}",
        )

    # ---- what fits -------------------------------------------------------------------------------

    def _parts_of(self, document: Document) -> list[Passage]:
        """The document in as few stretches as the window allows."""
        passages = [
            part
            for whole in paragraphs(document, passage_size(self._window))
            for part in self._fitting(whole)
        ]
        groups = _filled(passages, lambda passage: self._cost(passage.text), self._room, ends_a_paragraph)
        return [Passage(document, group[0].start, group[-1].stop) for group in groups]

    def _fitting(self, passage: Passage) -> Iterator[Passage]:
        """The passage, in halves where it alone is more than the window holds."""
        if self._cost(passage.text) <= self._room or passage.stop - passage.start < 2:
            yield passage
            return
        middle = (passage.start + passage.stop) // 2
        yield from self._fitting(Passage(passage.document, passage.start, middle))
        yield from self._fitting(Passage(passage.document, middle, passage.stop))

    def _joined(self, summaries: Sequence[str]) -> list[str]:
        """Summaries as texts that fit the window."""
        groups = _filled(summaries, self._cost, self._room, lambda _: True)
        return ["\n\n".join(group) for group in groups]

    def _cost(self, text: str) -> int:
        return self._format.count_tokens(text) + _JOIN

    def _tokens(self, ask: str) -> list[int]:
        return self._format.tokenize([{"role": "user", "content": ask}])

    # ---- what is asked ---------------------------------------------------------------------------

    def _of_whole(self, text: str) -> str:
        return f"{text}\n\nSummarize the text above {self._how(self._words)}."

    def _of_part(self, text: str) -> str:
        return f"{text}\n\nSummarize the text above {self._how(min(self._words, self._part_most // 2))}."

    def _of_summaries(self, text: str) -> str:
        return (
            f"{text}\n\nThe text above summarizes the parts of one document, in their order. "
            f"Summarize the whole {self._how(self._words)}."
        )

    def _how(self, words: int) -> str:
        return _STYLES[self._style].format(words=words)


def _filled(
    items: Iterable[Item], cost: Callable[[Item], int], room: int, may_end: Callable[[Item], bool]
) -> Iterator[list[Item]]:
    """Neighbours together, as many as there is room for, or half as many where a group may end there."""
    group: list[tuple[Item, int]] = []
    for item in items:
        more = cost(item)
        while group and sum(taken for _, taken in group) + more > room:
            ends = [at for at in range((len(group) + 1) // 2, len(group) + 1) if may_end(group[at - 1][0])]
            stop = ends[-1] if ends else len(group)
            yield [kept for kept, _ in group[:stop]]
            group = group[stop:]
        group.append((item, more))
    yield [kept for kept, _ in group]


def _words(length: SummaryLength | int) -> int:
    if isinstance(length, int) and length > 0:
        return length
    if length in SUMMARY_WORDS:
        return SUMMARY_WORDS[length]
    raise UsageError(f"the length of a summary is {length!r}", f"give words, or one of {', '.join(SUMMARY_WORDS)}")


def _checked_style(style: SummaryStyle) -> SummaryStyle:
    if style not in get_args(SummaryStyle):
        raise UsageError(f"the style of a summary is {style!r}", f"one of {', '.join(get_args(SummaryStyle))}")
    return style


class _Within:
    """A Progress for one pass inside a stage: it moves that stage on, by what the cache holds at once."""

    def __init__(self, outer: Progress, length: int) -> None:
        self._outer = outer
        self._length = length

    def begin(self, stage: str, total: float, unit: Unit) -> None:
        self._outer.advance(self._length - total)

    def advance(self, amount: float) -> None:
        self._outer.advance(amount)

    def end(self) -> None:
        pass


def summarize(
    model: str | Path,
    path: str | Path,
    *,
    length: SummaryLength | int = "medium",
    style: SummaryStyle = "prose",
    settings: RunConfig | None = None,
    sampling: SamplingParams | None = None,
    progress: Progress = SILENT,
) -> Summary:
    """Summarize one document.

    Args:
        model: a .gguf file.
        path: the document.
        length: words, or "short", "medium", "long" (LENGTHS).
        settings: how the model is run: its window and more.
        sampling: how tokens are drawn; by default the likeliest always.

    Raises:
        As open_documents does, and Summarizer.
    """
    document = load_document(Path(path), MAX_CHARACTERS)
    with open_session(model, settings, progress) as session:
        summarizer = Summarizer(session, length=length, style=style, sampling=sampling)
        for _ in summarizer.stream(document, progress):
            pass
    assert summarizer.summary is not None
    return summarizer.summary
