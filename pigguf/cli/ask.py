"""`pigguf ask`: questions about documents, and where the answers stand in them.

Contract: stdout carries an answer and, under it, the places it rests on; an answer held to a JSON schema
stands alone there. What was read, and what was not, is said on stderr. One question from the command line,
many from a stdin that is no terminal, a line each, or a conversation at a terminal (ask_shell.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from pigguf.chat.document_qa import Citation, DocumentChat, open_documents
from pigguf.cli import render, terminal
from pigguf.cli.answer_stream import AnswerStream
from pigguf.cli.chat import as_data, remarks
from pigguf.cli.formatting import printable
from pigguf.cli.options import (
    PATH,
    json_option,
    json_schema_option,
    run_options,
    sampling_options,
    verbose_option,
)
from pigguf.common.text_decoding import decode_text
from pigguf.documents import Document, SourceLocation
from pigguf.errors import UsageError
from pigguf.inference.engine import SamplingParams, log_to
from pigguf.inference.run_config import RunConfig

_SHOWN = 5  # files, or places, that a note names


@click.command(context_settings={"default_map": {"temperature": 0.0}})
@click.argument("path", metavar="MODEL", type=PATH)
@click.option(
    "--docs",
    metavar="PATH...",
    type=PATH,
    multiple=True,
    required=True,
    help="Files and folders to read: text, Markdown, HTML, PDF, DOCX, EPUB, source code.",
)
@click.argument("words", metavar="[QUESTION]", nargs=-1)
@click.option("--show-context", is_flag=True, help="Show the passages that the model reads.")
@run_options
@sampling_options
@json_schema_option
@json_option
@verbose_option
def command(
    path: Path,
    docs: tuple[Path, ...],
    words: tuple[str, ...],
    show_context: bool,
    settings: RunConfig,
    sampling: SamplingParams,
    max_tokens: int | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Ask the model in the GGUF file MODEL about documents.

    If the window holds the documents, all of them are read. If not, the passages nearest the question
    (BM25) fill it, and what is left out is said. Under the answer stand the places it rests on: the
    passages that it names, and words that it shares with one. PDF and long documents need packages: pip
    install -e ".[docs]" in the clone.

    Without QUESTION it is a conversation at a terminal; else questions are read from stdin, a line each
    (`-` reads them from a terminal too). The documents are read once.

    \b
    Examples:
      pigguf ask model.gguf --docs novel.txt "Who tells the story?"
      pigguf ask model.gguf --docs notes/ report.pdf "What was decided in May?" --ctx 16384
      pigguf ask model.gguf --docs *.md --json < questions.txt
    """
    paths, question = _paths_and_question(docs, words)
    at_terminal = question is None and sys.stdin.isatty()
    if at_terminal and as_json:
        raise UsageError("--json needs a question", "give one, or pipe them in")
    if verbose:
        log_to(render.note)
    with (
        terminal.left_as_found(),
        open_documents(
            path,
            paths,
            settings,
            sampling=sampling,
            max_tokens=max_tokens,
            progress=render.progress(keep=False),
        ) as chat,
    ):
        _tell_of_files_left_out(chat)
        if at_terminal:
            from pigguf.cli.ask_shell import AskShell  # prompt_toolkit is only for a terminal

            AskShell(chat, verbose, show_context).run()
            return
        for each in _questions(question):
            _ask(chat, each, as_json, show_context, alone=sampling.grammar is not None)


def _paths_and_question(docs: Sequence[Path], words: Sequence[str]) -> tuple[list[Path], str | None]:
    """What --docs names, with more paths behind it as a shell's `*` makes them, and the question or None."""
    paths = [Path(word) for word in words if os.path.exists(word)]
    questions = [word for word in words if not os.path.exists(word)]
    if len(questions) > 1:
        raise UsageError(
            f"neither {questions[0]!r} nor {questions[1]!r} is a file, and there is one question at a time",
            "put the question in quotes; further ones go to stdin, a line each",
        )
    if questions and not questions[0].strip():
        raise UsageError("the question is empty")
    return [*docs, *paths], questions[0] if questions and questions[0] != "-" else None


def _questions(question: str | None) -> Iterator[str]:
    """The one question, or each line of stdin as it comes."""
    if question is not None:
        yield question
        return
    asked = False
    for line in sys.stdin.buffer:
        if text := decode_text(line, "stdin").strip():
            asked = True
            yield text
    if not asked:
        raise UsageError("there is no question", "give it after the documents, or pipe it in")


def _ask(chat: DocumentChat, question: str, as_json: bool, show_context: bool, *, alone: bool) -> None:
    """Print one answer with its places, as it comes or as JSON at the end."""
    texts = chat.ask(question, render.progress(keep=False))
    if as_json:
        render.json(_as_data(question, "".join(texts), chat, show_context))
        sys.stdout.flush()
        return
    if show_context:
        show_passages(chat)
    with AnswerStream() as out:
        for text in texts:
            out.write(text)
    show_places(chat, on_stderr=alone)
    for line in remarks(chat, verbose=True):
        render.note(line)


def show_passages(chat: DocumentChat) -> None:
    """What the model reads for the last question, on stderr."""
    context = chat.pending_context or chat.retrieved_context
    assert context is not None
    for number in context.passage_numbers:
        render.note(chat.format_passage(number).rstrip() + "\n")


def show_places(chat: DocumentChat, on_stderr: bool = False) -> None:
    """What the last answer rests on, on stdout, and what was read for it, on stderr."""
    citations = chat.citations
    if citations:
        click.echo(err=on_stderr)
    for citation in citations:
        quote = f" “{citation.quote}”" if citation.quote else ""
        click.echo(printable(f"[{citation.passage_number}] {citation.location}{quote}"), err=on_stderr)
    sys.stdout.flush()
    if not citations:
        render.note("The answer names no passage, and has no four words in a row from one.")
    render.note(f"Read: {_some(map(str, _places_read(chat)))}.")


def _places_read(chat: DocumentChat) -> Iterator[SourceLocation]:
    """Stretches of the documents that were read for the last question, neighbours together."""
    assert chat.retrieved_context is not None
    read: list[tuple[int, int, Document, int]] = []  # first and last passage, their document, where it begins
    for number in chat.retrieved_context.passage_numbers:
        passage = chat.passages[number - 1]
        if read and read[-1][1] == number - 1 and read[-1][2] is passage.document:
            read[-1] = (*read[-1][:1], number, *read[-1][2:])
        else:
            read.append((number, number, passage.document, passage.start))
    for _, last, document, start in read:
        yield document.location(start, chat.passages[last - 1].stop)


def _tell_of_files_left_out(chat: DocumentChat) -> None:
    if left_out := chat.collection.skipped:
        names = _some(f"{file.path} ({file.reason})" for file in left_out)
        render.note(f"Not read, {len(left_out):,} of the files: {names}.")


def _some(texts: Iterable[str]) -> str:
    """The first of them, and how many there are more."""
    texts = list(texts)
    more = f" and {len(texts) - _SHOWN:,} more" if len(texts) > _SHOWN else ""
    return "; ".join(texts[:_SHOWN]) + more


def _as_data(question: str, answer: str, chat: DocumentChat, show_context: bool) -> dict[str, object]:
    reading = chat.retrieved_context
    assert reading is not None
    data: dict[str, object] = {
        "question": question,
        **as_data(answer, chat),
        "citations": [_citation(citation) for citation in chat.citations],
        "passages": {"read": len(reading.passage_numbers), "left_out": reading.total_passages - len(reading.passage_numbers)},
        "read": [_place(place) for place in _places_read(chat)],
        "documents": [str(document.path) for document in chat.collection.documents],
        "files_left_out": [
            {"file": str(file.path), "reason": file.reason} for file in chat.collection.skipped
        ],
    }
    if show_context:
        data["context"] = [
            {
                "passage": number,
                **_place(chat.passages[number - 1].location),
                "text": chat.passages[number - 1].text,
            }
            for number in reading.passage_numbers
        ]
    return data


def _citation(citation: Citation) -> dict[str, Any]:
    return {"passage": citation.passage_number, **_place(citation.location), "quote": citation.quote}


def _place(place: SourceLocation) -> dict[str, Any]:
    return asdict(place)
