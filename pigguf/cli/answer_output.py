"""What `pigguf chat`, `ask` and `summarize` print of an answer: its text, sources, status lines, or JSON.

Answers and their sources go to stdout, everything else to stderr.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click
from rich.cells import cell_len

from pigguf.chat.conversation import Chat
from pigguf.chat.turn_stats import TurnStats
from pigguf.cli import render, terminal
from pigguf.cli.formatting import printable
from pigguf.inference.engine import Session
from pigguf.inference.run_config import RunConfig

if TYPE_CHECKING:
    from pigguf.chat.document_qa import DocumentChat
    from pigguf.documents import Document, SourceLocation

_MAX_LISTED = 5  # files or locations in one note


# ---- text ----------------------------------------------------------------------------------------


def print_answer(texts: Iterable[str]) -> None:
    """Print an answer as it is generated."""
    with AnswerStream() as stream:
        for text in texts:
            stream.write(text)


class AnswerStream:
    """Prints one answer as it is generated; on exit it ends the last line, whatever happens.

    A pipe gets the text unchanged. A terminal gets lines that break between words, visible control
    characters, and no echo of what is typed meanwhile: that waits, unseen, for the next prompt.
    """

    def __init__(self) -> None:
        self._on_terminal = sys.stdout.isatty()
        self._wrote = False
        self._column = 0
        self._word = ""  # not printed until it is clear on which line it goes
        self._echo: list[Any] | None = None

    def write(self, text: str) -> None:
        """Print text of the answer at once; on a terminal up to its last complete word."""
        self._wrote = self._wrote or bool(text)
        if not self._on_terminal:
            self._print(text)
            return
        for character in printable(text):
            if character.isspace():
                self._end_word()
                self._print_space(character)
            else:
                if cell_len(character) == 2:  # scripts without spaces break anywhere
                    self._end_word()
                self._word += character
        sys.stdout.flush()

    def __enter__(self) -> AnswerStream:
        self._echo = terminal.disable_echo()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._end_word()
            if self._wrote:
                self._print("\n")
        finally:
            terminal.restore_settings(self._echo)

    def _end_word(self) -> None:
        word, self._word = self._word, ""  # first, because Ctrl-C may come at any line
        if not word:
            return
        width, cells = shutil.get_terminal_size().columns, cell_len(word)
        if self._column and self._column + cells > width:
            sys.stdout.write("\n")
            self._column = 0
        sys.stdout.write(word)
        self._column = (self._column + cells) % width if cells > width else self._column + cells

    def _print_space(self, character: str) -> None:
        at_edge = self._column >= shutil.get_terminal_size().columns
        if character == "\n" or at_edge:
            sys.stdout.write("\n")
            self._column = 0
        else:
            sys.stdout.write(character)
            self._column += 8 - self._column % 8 if character == "\t" else 1

    def _print(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


# ---- status lines --------------------------------------------------------------------------------


def note_reduced_context(session: Session, config: RunConfig) -> None:
    """Print a note if the default context is smaller than the model's, because of the memory."""
    length, model_length = session.context.length, session.context.model.context_length
    if config.ctx is None and length < model_length:
        render.note(
            f"Using a context of {length:,} of the model's {model_length:,} tokens, as many as fit in half "
            "of the free memory; --ctx sets another, and `pigguf plan` shows what fits."
        )


def note_status(chat: Chat, verbose: bool = True) -> None:
    """Print the status lines of the last answer: why it was cut off, if it was, and its timings if wanted."""
    turn = _last_turn(chat)
    if turn.stop_reason == "length":
        render.note(f"(cut off: --max-tokens {turn.generated_tokens:,})")
    if turn.stop_reason == "window":
        render.note(f"(cut off: the context of {chat.context_length:,} tokens is full)")
    if verbose:
        render.note(_timings_line(turn))


def _timings_line(turn: TurnStats) -> str:
    computed = turn.prompt_tokens - turn.cached_tokens
    line = (
        f"prefill: {computed:,} tokens in {turn.prefill_seconds:.1f} s "
        f"({turn.prefill_tokens_per_second:,.0f} tokens/s), "
        f"first token after {turn.first_token_seconds:.1f} s"
    )
    if turn.cached_tokens:
        line = f"cached: {turn.cached_tokens:,} tokens; {line}"
    if turn.generated_tokens < 2:  # the first token comes from the prefill, so one alone has no rate
        return line
    generated = f"{turn.generated_tokens:,} tokens in {turn.decode_seconds:.1f} s"
    return f"{line}; generated: {generated} ({turn.decode_tokens_per_second:.1f} tokens/s)"


# ---- sources -------------------------------------------------------------------------------------


def note_skipped_files(chat: DocumentChat) -> None:
    """Print a note about the files that could not be read."""
    if skipped := chat.collection.skipped:
        files = _list_first(f"{file.path} ({file.reason})" for file in skipped)
        render.note(f"Skipped {len(skipped):,} {'file' if len(skipped) == 1 else 'files'}: {files}.")


def note_passages(chat: DocumentChat) -> None:
    """Print the passages in the prompt of the current question on stderr."""
    context = chat.pending_context or chat.retrieved_context
    assert context is not None
    for number in context.passage_numbers:
        render.note(chat.format_passage(number).rstrip() + "\n")


def print_citations(chat: DocumentChat, to_stderr: bool = False) -> None:
    """Print the sources of the last answer, and on stderr which parts of the documents were in the prompt.

    Args:
        chat: the conversation.
        to_stderr: print the sources on stderr, too.
    """
    citations = chat.citations
    if citations:
        click.echo(err=to_stderr)
    for citation in citations:
        quote = f" “{citation.quote}”" if citation.quote else ""
        click.echo(printable(f"[{citation.passage_number}] {citation.location}{quote}"), err=to_stderr)
    sys.stdout.flush()
    if not citations:
        render.note("The answer names no passage, and shares no four consecutive words with one.")
    render.note(f"In the prompt: {_list_first(map(str, _locations_in_prompt(chat)))}.")


def _locations_in_prompt(chat: DocumentChat) -> Iterator[SourceLocation]:
    """Yield the parts of the documents in the prompt of the last question; adjacent passages are one part."""
    assert chat.retrieved_context is not None
    parts: list[tuple[int, int, Document, int]] = []  # first and last passage, document, start in it
    for number in chat.retrieved_context.passage_numbers:
        passage = chat.passages[number - 1]
        if parts and parts[-1][1] == number - 1 and parts[-1][2] is passage.document:
            parts[-1] = (parts[-1][0], number, *parts[-1][2:])
        else:
            parts.append((number, number, passage.document, passage.start))
    for _, last, document, start in parts:
        yield document.location(start, chat.passages[last - 1].stop)


def _list_first(texts: Iterable[str]) -> str:
    """Return the first texts, and how many more there are."""
    texts = list(texts)
    more = f" and {len(texts) - _MAX_LISTED:,} more" if len(texts) > _MAX_LISTED else ""
    return "; ".join(texts[:_MAX_LISTED]) + more


# ---- JSON ----------------------------------------------------------------------------------------


def answer_as_json(answer: str, chat: Chat) -> dict[str, object]:
    """Return the last answer with its token counts and timings, for JSON output."""
    turn = _last_turn(chat)
    return {
        "answer": answer,
        "finish_reason": turn.stop_reason,
        "notices": turn.notices,
        "tokens": {
            "prompt": turn.prompt_tokens,
            "cached": turn.cached_tokens,
            "answer": turn.generated_tokens,
            "context_length": chat.context_length,
        },
        "timings": {
            "prefill_seconds": round(turn.prefill_seconds, 3),
            "prefill_tokens_per_second": round(turn.prefill_tokens_per_second, 2),
            "first_token_seconds": round(turn.first_token_seconds, 3),
            "decode_seconds": round(turn.decode_seconds, 3),
            "decode_tokens_per_second": round(turn.decode_tokens_per_second, 2),
        },
    }


def cited_answer_as_json(
    question: str, answer: str, chat: DocumentChat, show_context: bool
) -> dict[str, object]:
    """Return the last answer about documents with its sources, for JSON output."""
    context = chat.retrieved_context
    assert context is not None
    in_prompt = len(context.passage_numbers)
    data: dict[str, object] = {
        "question": question,
        **answer_as_json(answer, chat),
        "citations": [
            {"passage": citation.passage_number, **asdict(citation.location), "quote": citation.quote}
            for citation in chat.citations
        ],
        "passages": {"read": in_prompt, "left_out": context.total_passages - in_prompt},
        "read": [asdict(location) for location in _locations_in_prompt(chat)],
        "documents": [str(document.path) for document in chat.collection.documents],
        "files_left_out": [
            {"file": str(file.path), "reason": file.reason} for file in chat.collection.skipped
        ],
    }
    if show_context:
        data["context"] = [
            {
                "passage": number,
                **asdict(chat.passages[number - 1].location),
                "text": chat.passages[number - 1].text,
            }
            for number in context.passage_numbers
        ]
    return data


def _last_turn(chat: Chat) -> TurnStats:
    assert chat.last_turn is not None
    return chat.last_turn
