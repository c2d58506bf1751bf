"""`pigguf chat`: a conversation at the terminal (chat_shell.py), or one question and its answer.

Contract: stdout carries answers and nothing else. `-p`, or a stdin that is no terminal, asks one
question; with both, `-p` is the question and stdin a document.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import click

from pigguf.chat.context_overflow import OVERFLOW_POLICIES, OverflowPolicy
from pigguf.chat.conversation import Chat, TurnStats
from pigguf.chat.few_shot import read_examples
from pigguf.cli import render, terminal
from pigguf.cli.answer_stream import AnswerStream
from pigguf.cli.options import (
    json_option,
    json_schema_option,
    run_options,
    sampling_options,
    verbose_option,
)
from pigguf.common.text_decoding import decode_text
from pigguf.errors import UsageError
from pigguf.inference.engine import SamplingParams, Session, log_to
from pigguf.inference.open_context import open_session
from pigguf.inference.run_config import RunConfig

_PATIENCE = 2.0  # seconds


@click.command()
@click.argument("path", metavar="MODEL", type=click.Path(path_type=Path))
@click.option("-p", "--prompt", metavar="TEXT", help="Ask this one question, print the answer, and end.")
@click.option(
    "--file",
    "files",
    metavar="PATH",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="Put a text file in front of the first question; may be repeated.",
)
@click.option(
    "--examples",
    "examples_path",
    metavar="FILE.jsonl",
    type=click.Path(path_type=Path, readable=False),
    help='Put questions with their answers, lines of {"user": ..., "assistant": ...}, in front of the first '
    "question, as many as fit.",
)
@click.option("--system", metavar="TEXT", help="System prompt.")
@click.option(
    "--overflow",
    type=click.Choice(list(OVERFLOW_POLICIES)),
    default="error",
    show_default=True,
    help="When the window is full: refuse the question, leave the oldest turns out, or let the model "
    "condense them.",
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
    settings: RunConfig,
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

    In the chat, /help lists what it can do. Ctrl-C stops an answer, Ctrl-D ends the chat.
    """
    question, piped = _question(prompt)
    if as_json and question is None:
        raise UsageError("--json needs a question", "ask it with -p, or pipe it in")
    examples = read_examples(examples_path) if examples_path else ()
    if verbose:
        log_to(render.note)
    with terminal.left_as_found(), open_session(path, settings, render.progress(keep=False)) as session:
        tell_of_window(session, settings)
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
            render.note(f"{len(examples):,} examples go before the first question, if they fit.")
        for file in files:
            chat.add_document(file)
        if piped is not None:
            chat.add_text("stdin", piped)
        if question is not None:
            _ask_once(chat, question, as_json)
        else:
            from pigguf.cli.chat_shell import Shell  # prompt_toolkit is only for a terminal

            render.note(f"{path.name}: {model.description}, a window of {chat.context_length:,} tokens.")
            Shell(chat, verbose).run()


def tell_of_window(session: Session, settings: RunConfig) -> None:
    """Say where a window that nobody asked for is not the whole of the model's."""
    window, whole = session.context.length, session.context.model.context_length
    if settings.ctx is None and window < whole:
        render.note(
            f"Taking {window:,} of the model's {whole:,} tokens, which half of the free memory holds; "
            f"--ctx takes more, and `pigguf plan` says how much fits."
        )


def _question(prompt: str | None) -> tuple[str | None, str | None]:
    """The one question to ask, or None for a chat; and the document from stdin, or None."""
    if prompt is not None and not prompt.strip():
        raise UsageError("the question given with -p is empty")
    if sys.stdin.isatty():
        return prompt, None
    piped = decode_text(_read_stdin(), "stdin")
    if prompt is None and not piped.strip():
        raise UsageError("stdin is no terminal and holds no question", "ask with -p, or pipe the question in")
    return (piped.strip(), None) if prompt is None else (prompt, piped if piped.strip() else None)


def _read_stdin() -> bytes:
    """All of stdin. A pipe that a parent left open by accident must not look like a hang: it is told of."""
    note = "Waiting for the end of stdin, which goes in as a document; </dev/null says that there is none."
    telling = threading.Timer(_PATIENCE, render.note, [note])
    telling.daemon = True
    telling.start()
    try:
        return sys.stdin.buffer.read()
    finally:
        telling.cancel()


def _ask_once(chat: Chat, question: str, as_json: bool) -> None:
    """Print one answer, as it comes or as JSON at the end, and the timings on stderr."""
    texts = chat.ask(question, render.progress(keep=False))
    if as_json:
        answer = "".join(texts)
        render.json(as_data(answer, chat))
        return
    with AnswerStream() as out:
        for text in texts:
            out.write(text)
    for line in remarks(chat, verbose=True):
        render.note(line)


def remarks(chat: Chat, verbose: bool) -> Iterator[str]:
    """What there is to say of the last answer: why it stopped, if not by itself, and its timings."""
    turn = chat.last_turn
    assert turn is not None
    if turn.stop_reason == "length":
        yield f"(cut at --max-tokens {turn.generated_tokens:,})"
    if turn.stop_reason == "window":
        yield f"(cut: the window of {chat.context_length:,} tokens is full)"
    if verbose:
        yield _timings(turn)


def _timings(turn: TurnStats) -> str:
    """One line on how long a turn took."""
    read = turn.prompt_tokens - turn.cached_tokens
    line = (
        f"{read:,} tokens read in {turn.prefill_seconds:.1f} s ({turn.prefill_tokens_per_second:,.0f} tokens/s), "
        f"first token after {turn.first_token_seconds:.1f} s"
    )
    if turn.cached_tokens:
        line = f"{turn.cached_tokens:,} tokens were read before, {line}"
    if turn.generated_tokens < 2:  # one token comes with the reading and has no rate of its own
        return line
    written = f"{turn.generated_tokens:,} written in {turn.decode_seconds:.1f} s"
    return f"{line}, {written} ({turn.decode_tokens_per_second:.1f} tokens/s)"


def as_data(answer: str, chat: Chat) -> dict[str, object]:
    """The last answer for a program to read."""
    turn = chat.last_turn
    assert turn is not None
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
