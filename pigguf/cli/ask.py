"""`pigguf ask`: questions about documents, and where the answers stand in them.

Answers go to stdout, with their sources below; an answer constrained by a JSON schema is alone there, and its
sources go to stderr, like everything else. One question comes from the command line, several come from a
stdin that is not a terminal, one per line, and a terminal gets a conversation (ask_shell.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from pigguf.chat.document_qa import DocumentChat, open_documents
from pigguf.cli import render, terminal
from pigguf.cli.answer_output import (
    cited_answer_as_json,
    note_passages,
    note_skipped_files,
    note_status,
    print_answer,
    print_citations,
)
from pigguf.cli.options import (
    FILE_PATH,
    json_option,
    json_schema_option,
    run_options,
    sampling_options,
    verbose_option,
)
from pigguf.cli.progress_bars import progress_bar
from pigguf.common.text_decoding import decode_text
from pigguf.errors import UsageError
from pigguf.inference.engine import SamplingParams, log_to
from pigguf.inference.run_config import RunConfig


@click.command(context_settings={"default_map": {"temperature": 0.0}})
@click.argument("path", metavar="MODEL", type=FILE_PATH)
@click.option(
    "--docs",
    metavar="PATH...",
    type=FILE_PATH,
    multiple=True,
    required=True,
    help="Files and folders: text, Markdown, HTML, PDF, DOCX, EPUB, source code.",
)
@click.argument("words", metavar="[QUESTION]", nargs=-1)
@click.option("--show-context", is_flag=True, help="Print the passages that are in the prompt.")
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
    config: RunConfig,
    sampling: SamplingParams,
    max_tokens: int | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Ask the model in the GGUF file MODEL about documents.

    If all documents fit in the context window, all of them are in the prompt. If not, the passages that rank
    highest for the question (BM25) are, and a note states what is missing. The sources are printed below the
    answer: the passages that it names, and words that it shares with one. PDF and long documents need
    packages: pip install -e ".[docs]" in the clone.

    Without QUESTION, a terminal gets a conversation; otherwise questions are read from stdin, one per line
    (`-` reads them from a terminal, too). The prefill of the documents is done once.

    \b
    Examples:
      pigguf ask model.gguf --docs novel.txt "Who tells the story?"
      pigguf ask model.gguf --docs notes/ report.pdf "What was decided in May?" --ctx 16384
      pigguf ask model.gguf --docs *.md --json < questions.txt
    """
    paths, question = _paths_and_question(docs, words)
    at_terminal = question is None and sys.stdin.isatty()
    if at_terminal and as_json:
        raise UsageError("--json needs a question", "give one, or pipe questions in")
    if verbose:
        log_to(render.note)
    with (
        terminal.restore_on_termination(),
        open_documents(
            path,
            paths,
            config,
            sampling=sampling,
            max_tokens=max_tokens,
            progress=progress_bar(keep=False),
        ) as chat,
    ):
        note_skipped_files(chat)
        if at_terminal:
            from pigguf.cli.ask_shell import AskShell  # imports prompt_toolkit, which only a terminal needs

            AskShell(chat, verbose, show_context).run()
            return
        for one in _questions(question):
            _ask(chat, one, as_json, show_context, sources_to_stderr=sampling.grammar is not None)


def _paths_and_question(docs: Sequence[Path], words: Sequence[str]) -> tuple[list[Path], str | None]:
    """Return the paths of --docs and those among the words (a shell's `*` makes them), and the question."""
    paths = [Path(word) for word in words if os.path.exists(word)]
    questions = [word for word in words if not os.path.exists(word)]
    if len(questions) > 1:
        raise UsageError(
            f"neither {questions[0]!r} nor {questions[1]!r} is a file, and only one question is allowed",
            "put the question in quotes; pipe several questions in, one per line",
        )
    if questions and not questions[0].strip():
        raise UsageError("the question is empty")
    return [*docs, *paths], questions[0] if questions and questions[0] != "-" else None


def _questions(question: str | None) -> Iterator[str]:
    """Yield the question, or each line of stdin as it comes."""
    if question is not None:
        yield question
        return
    is_empty = True
    for line in sys.stdin.buffer:
        if text := decode_text(line, "stdin").strip():
            is_empty = False
            yield text
    if is_empty:
        raise UsageError("no question given", "give it after the documents, or pipe it in")


def _ask(
    chat: DocumentChat, question: str, as_json: bool, show_context: bool, *, sources_to_stderr: bool
) -> None:
    """Print one answer as it is generated, with its sources, or as JSON at the end."""
    texts = chat.ask(question, progress_bar(keep=False))
    if as_json:
        render.json(cited_answer_as_json(question, "".join(texts), chat, show_context))
        sys.stdout.flush()
        return
    if show_context:
        note_passages(chat)
    print_answer(texts)
    print_citations(chat, to_stderr=sources_to_stderr)
    note_status(chat)
