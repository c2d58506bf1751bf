"""`pigguf chat`: a conversation at the terminal (chat_shell.py), or one question and its answer.

Only answers go to stdout. `-p`, or a stdin that is not a terminal, asks one question; with both, `-p` is the
question and stdin a document.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import click

from pigguf.chat.context_overflow import OVERFLOW_POLICIES, OverflowPolicy
from pigguf.chat.conversation import Chat
from pigguf.chat.few_shot import read_examples
from pigguf.cli import render, terminal
from pigguf.cli.answer_output import answer_as_json, note_reduced_context, note_status, print_answer
from pigguf.cli.options import (
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
from pigguf.inference.open_context import open_session
from pigguf.inference.run_config import RunConfig

_STDIN_NOTE_SECONDS = 2.0  # wait for the end of stdin before a note about it


@click.command()
@click.argument("path", metavar="MODEL", type=click.Path(path_type=Path))
@click.option("-p", "--prompt", metavar="TEXT", help="Ask this one question, print the answer, and exit.")
@click.option(
    "--file",
    "files",
    metavar="PATH",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="Put a text file before the first question; can be repeated.",
)
@click.option(
    "--examples",
    "examples_path",
    metavar="FILE.jsonl",
    type=click.Path(path_type=Path, readable=False),
    help='Few-shot examples, as lines of {"user": ..., "assistant": ...}: put before the first question, as '
    "many as fit.",
)
@click.option("--system", metavar="TEXT", help="System prompt.")
@click.option(
    "--overflow",
    type=click.Choice(list(OVERFLOW_POLICIES)),
    default="error",
    show_default=True,
    help="If the context window is full: refuse the question (error), drop the oldest turns (shift), or let "
    "the model summarize them (summarize).",
)
@run_options
@sampling_options
@json_schema_option
@json_option
@verbose_option
def command(
    path: Path,
    prompt: str | None,
    files: tuple[Path, ...],
    examples_path: Path | None,
    system: str | None,
    overflow: OverflowPolicy,
    config: RunConfig,
    sampling: SamplingParams,
    max_tokens: int | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Talk to the model in the GGUF file MODEL, or ask it one question.

    \b
    Examples:
      pigguf chat model.gguf
      pigguf chat model.gguf --ctx 8192 --file novel.txt -p "Who tells the story?"
      git diff | pigguf chat model.gguf -p "Write a commit message for this."
      pigguf chat model.gguf -p "Name a pig." --json-schema '{"properties": {"name": {"type": "string"}}}'

    In the chat, /help lists the commands. Ctrl-C stops an answer, Ctrl-D ends the chat.
    """
    question, piped = _question(prompt)
    if as_json and question is None:
        raise UsageError("--json needs a question", "give it with -p, or pipe it in")
    examples = read_examples(examples_path) if examples_path else ()
    if verbose:
        log_to(render.note)
    with (
        terminal.restore_on_termination(),
        open_session(path, config, progress_bar(keep=False)) as session,
    ):
        note_reduced_context(session, config)
        model = session.context.model
        chat = Chat(
            model,
            session,
            system=system,
            sampling=sampling,
            max_tokens=max_tokens,
            overflow=overflow,
            examples=examples,
        )
        if examples:
            render.note(f"{len(examples):,} examples are put before the first question, if they fit.")
        for file in files:
            chat.add_document(file)
        if piped is not None:
            chat.add_text("stdin", piped)
        if question is not None:
            _ask_once(chat, question, as_json)
        else:
            from pigguf.cli.chat_shell import ChatShell  # imports prompt_toolkit, which only a terminal needs

            render.note(
                f"{path.name}: {model.description}, a context window of {chat.context_length:,} tokens."
            )
            ChatShell(chat, verbose).run()


def _question(prompt: str | None) -> tuple[str | None, str | None]:
    """Return the question, or None for a conversation; and the document from stdin, or None."""
    if prompt is not None and not prompt.strip():
        raise UsageError("the question given with -p is empty")
    if sys.stdin.isatty():
        return prompt, None
    piped = decode_text(_read_stdin(), "stdin")
    if prompt is None and not piped.strip():
        raise UsageError(
            "no question given: stdin is not a terminal and is empty", "give it with -p, or pipe it in"
        )
    return (piped.strip(), None) if prompt is None else (prompt, piped if piped.strip() else None)


def _read_stdin() -> bytes:
    """Read all of stdin; a note is printed if that takes long, because a pipe may have been left open."""
    note = "Waiting for the end of stdin, which is used as a document; use </dev/null if there is none."
    timer = threading.Timer(_STDIN_NOTE_SECONDS, render.note, [note])
    timer.daemon = True
    timer.start()
    try:
        return sys.stdin.buffer.read()
    finally:
        timer.cancel()


def _ask_once(chat: Chat, question: str, as_json: bool) -> None:
    """Print one answer as it is generated, with its timings on stderr, or as JSON at the end."""
    texts = chat.ask(question, progress_bar(keep=False))
    if as_json:
        answer = "".join(texts)
        render.json(answer_as_json(answer, chat))
        return
    print_answer(texts)
    note_status(chat)
