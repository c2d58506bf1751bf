"""Summarizer: a summary of a document, in one pass if it fits the context window, else by map-reduce.

    summary = pigguf.summarize("model.gguf", "report.pdf", length="short")
    print(summary.text)

The whole document is read. If it does not fit, it is split at paragraphs into parts that fill the window.
Each part is summarized (map), then the summaries are, together or again in parts, until one is left (reduce).
That it took parts is logged ("pigguf") and in `Summary.parts`.
Not here: text extraction (documents/).
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
from pigguf.documents.chunking import ends_at_paragraph, passage_size, split_by_paragraph
from pigguf.errors import ContextOverflow, UsageError
from pigguf.inference.detokenizer import stream_text
from pigguf.inference.engine import SamplingParams, Session, StopReason
from pigguf.inference.open_context import open_session
from pigguf.inference.run_config import RunConfig
from pigguf.progress import SILENT, Progress, Unit, stage

SummaryLength = Literal["short", "medium", "long"]
SummaryStyle = Literal["prose", "bullets"]
Item = TypeVar("Item")

SUMMARY_WORDS: dict[SummaryLength, int] = {"short": 60, "medium": 180, "long": 500}
"""Words of a summary of each length."""

_STYLE_INSTRUCTIONS: dict[SummaryStyle, str] = {
    "prose": "in about {words} words",
    "bullets": "as a list of bullet points, in about {words} words",
}
_MAX_PART_TOKENS = 512  # of a part's summary; in a small context window, an eighth of it
_MARGIN_TOKENS = 16  # texts may have a few more tokens together than one by one
_JOIN_TOKENS = 2  # that may stand between two passages

_log = logging.getLogger("pigguf")


@dataclass(frozen=True)
class SummarizedPart:
    """A part of the document that was summarized in one pass.

    Attributes:
        location: where it is in the document.
        summary: of this part; of the whole document if there is only one part.
        stop_reason: "end", or why the summary was cut short.
    """

    location: SourceLocation
    summary: str
    stop_reason: StopReason


@dataclass(frozen=True)
class Summary:
    """A summary of a document.

    Attributes:
        text: the summary.
        parts: the parts of the document, in order.
        passes: how many summaries were generated, the last one included.
        stop_reason: "end", or "length" or "window" if the summary was cut short.
    """

    text: str
    parts: tuple[SummarizedPart, ...]
    passes: int
    stop_reason: StopReason


class Summarizer:
    """Summarizes documents on one session.

    Args:
        session: a session that only the summarizer uses.
        length: words, or a name of SUMMARY_WORDS.
        style: prose or bullets.
        sampling: how tokens are sampled; by default always the most likely one.
        max_tokens: the most tokens of the summary; None is what its length needs.

    Attributes:
        summary: the last summary; None until `stream` was iterated to its end.

    Raises:
        UsageError: there is no such length or style.
        TokenizerError: the model has no chat template.
        ContextOverflow: the context window is too small for map-reduce.
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
        self._words = _word_count(length)
        self._style = _checked_style(style)
        self._sampling = sampling or GREEDY
        self._model = session.context.model
        self._session = session
        self._format = ChatFormat(self._model)
        self._context_length = session.n_past + session.tokens_left
        # Two tokens a word, and some more, as the prompt says "about"
        self._max_tokens = min(
            2 * self._words + 32, self._context_length // 4, max_tokens or self._context_length
        )
        self._max_part_tokens = min(_MAX_PART_TOKENS, self._context_length // 8)
        prompts = self._whole_prompt(""), self._part_prompt(""), self._reduce_prompt("")
        prompt_overhead = max(len(self._tokenize(prompt)) for prompt in prompts)
        reserved = prompt_overhead + max(self._max_tokens, self._max_part_tokens) + _MARGIN_TOKENS
        self._max_text_tokens = self._context_length - reserved
        if self._max_text_tokens < 3 * self._max_part_tokens:
            raise ContextOverflow(
                f"a context window of {self._context_length:,} tokens is too small for a summary",
                "use a larger context window (`ctx`), or a shorter `length`",
            )

    # ---- map-reduce ------------------------------------------------------------------------------

    def stream(self, document: Document, progress: Progress = SILENT) -> Iterator[str]:
        """Yield the summary as text while it is generated, after its parts were summarized.

        At the end it is in `summary`.

        Args:
            progress: one stage for each level of map-reduce, in tokens.
        """
        self.summary = None
        passages = self._split(document)
        if len(passages) == 1:
            text = yield from self._stream_last(self._whole_prompt(passages[0].text), progress)
            only = SummarizedPart(passages[0].location, text, self._stop_reason)
            self.summary = Summary(text, (only,), 1, self._stop_reason)
            return
        self._warn_about_parts(document, len(passages))
        results = self._summarize_each([passage.text for passage in passages], progress)
        parts = tuple(
            SummarizedPart(passage.location, *result)
            for passage, result in zip(passages, results, strict=True)
        )
        passes = len(results)
        while len(texts := self._joined([summary for summary, _ in results])) > 1:
            results = self._summarize_each(texts, progress)
            passes += len(results)
        text = yield from self._stream_last(self._reduce_prompt(texts[0]), progress)
        self.summary = Summary(text, parts, passes + 1, self._stop_reason)

    def _summarize_each(self, texts: Sequence[str], progress: Progress) -> list[tuple[str, StopReason]]:
        """Return the summary of each text of one level, and why it ended."""
        prompts = [self._part_prompt(text) for text in texts]
        lengths = [len(self._tokenize(prompt)) for prompt in prompts]
        results: list[tuple[str, StopReason]] = []
        with stage(progress, f"summarizing {len(texts)} parts", sum(lengths), "tokens"):
            for prompt, length in zip(prompts, lengths, strict=True):
                part_progress = _PartProgress(progress, length)
                summary = "".join(self._generate(prompt, self._max_part_tokens, part_progress))
                results.append((summary, self._stop_reason))
        return results

    def _stream_last(self, prompt: str, progress: Progress) -> Generator[str, None, str]:
        """Yield the text of the final summary, and return the whole of it."""
        summary = ""
        for text in self._generate(prompt, self._max_tokens, progress):
            summary += text
            yield text
        return summary

    def _generate(self, prompt: str, max_tokens: int, progress: Progress) -> Iterator[str]:
        """Yield the answer to a prompt, without leading white space."""
        self._session.set_prompt(self._tokenize(prompt), progress)
        has_text = False
        for text in stream_text(self._model, self._session.generate(self._sampling, max_tokens)):
            stripped = text if has_text else text.lstrip()
            has_text = has_text or bool(stripped)
            if stripped:
                yield stripped

    @property
    def _stop_reason(self) -> StopReason:
        return self._session.stop_reason or "interrupted"

    def _warn_about_parts(self, document: Document, parts: int) -> None:
        _log.warning(
            "%s does not fit into the context window of %s tokens: it is summarized in %s parts, and the "
            "whole from their summaries.",
            document.path,
            f"{self._context_length:,}",
            f"{parts:,}",
        )

    # ---- splitting -------------------------------------------------------------------------------

    def _split(self, document: Document) -> list[Passage]:
        """Return the document as few passages that fit into the context window."""
        passages = [
            part
            for paragraph in split_by_paragraph(document, passage_size(self._context_length))
            for part in self._halved_to_fit(paragraph)
        ]
        groups = _pack(
            passages,
            lambda passage: self._count_tokens(passage.text),
            self._max_text_tokens,
            ends_at_paragraph,
        )
        return [Passage(document, group[0].start, group[-1].stop) for group in groups]

    def _halved_to_fit(self, passage: Passage) -> Iterator[Passage]:
        """Yield the passage, halved until each piece fits into the context window."""
        if self._count_tokens(passage.text) <= self._max_text_tokens or passage.stop - passage.start < 2:
            yield passage
            return
        middle = (passage.start + passage.stop) // 2
        yield from self._halved_to_fit(Passage(passage.document, passage.start, middle))
        yield from self._halved_to_fit(Passage(passage.document, middle, passage.stop))

    def _joined(self, summaries: Sequence[str]) -> list[str]:
        """Return summaries joined to as few texts as fit into the context window."""
        groups = _pack(summaries, self._count_tokens, self._max_text_tokens, lambda _: True)
        return ["\n\n".join(group) for group in groups]

    def _count_tokens(self, text: str) -> int:
        return self._format.count_tokens(text) + _JOIN_TOKENS

    def _tokenize(self, prompt: str) -> list[int]:
        return self._format.tokenize([{"role": "user", "content": prompt}])

    # ---- prompts ---------------------------------------------------------------------------------

    def _whole_prompt(self, text: str) -> str:
        return f"{text}\n\nSummarize the text above {self._style_instruction(self._words)}."

    def _part_prompt(self, text: str) -> str:
        words = min(self._words, self._max_part_tokens // 2)
        return f"{text}\n\nSummarize the text above {self._style_instruction(words)}."

    def _reduce_prompt(self, text: str) -> str:
        return (
            f"{text}\n\nThe text above summarizes the parts of one document, in their order. "
            f"Summarize the whole {self._style_instruction(self._words)}."
        )

    def _style_instruction(self, words: int) -> str:
        return _STYLE_INSTRUCTIONS[self._style].format(words=words)


def _pack(
    items: Iterable[Item],
    count_tokens: Callable[[Item], int],
    max_tokens: int,
    may_end: Callable[[Item], bool],
) -> Iterator[list[Item]]:
    """Yield consecutive items in groups of at most `max_tokens`.

    A full group is cut at the last item of its second half at which it may end, if there is one.
    """
    group: list[tuple[Item, int]] = []
    for item in items:
        tokens = count_tokens(item)
        while group and sum(count for _, count in group) + tokens > max_tokens:
            ends = [end for end in range((len(group) + 1) // 2, len(group) + 1) if may_end(group[end - 1][0])]
            stop = ends[-1] if ends else len(group)
            yield [packed for packed, _ in group[:stop]]
            group = group[stop:]
        group.append((item, tokens))
    yield [packed for packed, _ in group]


def _word_count(length: SummaryLength | int) -> int:
    if isinstance(length, int) and length > 0:
        return length
    if length in SUMMARY_WORDS:
        return SUMMARY_WORDS[length]
    raise UsageError(
        f"the length of a summary is {length!r}",
        f"use a number of words, or one of {', '.join(SUMMARY_WORDS)}",
    )


def _checked_style(style: SummaryStyle) -> SummaryStyle:
    if style not in get_args(SummaryStyle):
        raise UsageError(
            f"the style of a summary is {style!r}", f"use one of {', '.join(get_args(SummaryStyle))}"
        )
    return style


class _PartProgress:
    """The Progress of one prefill inside of a stage; cached tokens count as done at once.

    Args:
        outer: the stage's Progress.
        prompt_tokens: tokens of the whole prompt.
    """

    def __init__(self, outer: Progress, prompt_tokens: int) -> None:
        self._outer = outer
        self._prompt_tokens = prompt_tokens

    def begin(self, stage: str, total: float, unit: Unit) -> None:
        """Advance by the cached tokens: the prefill computes only `total`."""
        self._outer.advance(self._prompt_tokens - total)

    def advance(self, amount: float) -> None:
        """Advance the stage."""
        self._outer.advance(amount)

    def end(self) -> None:
        """Leave the stage open: other parts follow."""


def summarize(
    model: str | Path,
    path: str | Path,
    *,
    length: SummaryLength | int = "medium",
    style: SummaryStyle = "prose",
    config: RunConfig | None = None,
    sampling: SamplingParams | None = None,
    progress: Progress = SILENT,
) -> Summary:
    """Summarize one document.

    Args:
        model: a .gguf file.
        path: the document.
        length: words, or "short", "medium", "long" (SUMMARY_WORDS).
        style: prose or bullets.
        config: how the model is run: its context window and more.
        sampling: how tokens are sampled; by default always the most likely one.
        progress: of loading the model, and of each level of map-reduce.

    Raises:
        As open_documents and Summarizer.
    """
    document = load_document(Path(path), MAX_CHARACTERS)
    with open_session(model, config, progress) as session:
        summarizer = Summarizer(session, length=length, style=style, sampling=sampling)
        for _ in summarizer.stream(document, progress):
            pass
    assert summarizer.summary is not None
    return summarizer.summary
