"""`pigguf summarize`: a document in few words, whatever its length."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import get_args

import click

from pigguf.chat.summarization import SUMMARY_WORDS, Summarizer, Summary, SummaryLength, SummaryStyle
from pigguf.cli import render, terminal
from pigguf.cli.answer_stream import AnswerStream
from pigguf.cli.options import PATH, json_option, run_options, sampling_options, verbose_option
from pigguf.documents import MAX_CHARACTERS, load_document
from pigguf.inference.engine import SamplingParams, log_to
from pigguf.inference.open_context import open_session
from pigguf.inference.run_config import RunConfig


def _length(ctx: click.Context, parameter: click.Parameter, value: str) -> SummaryLength | int:
    if value in SUMMARY_WORDS:
        return value
    if value.isascii() and value.isdecimal() and int(value):
        return int(value)
    raise click.BadParameter(f"{value!r} is not {', '.join(SUMMARY_WORDS)} or a number of words", ctx, parameter)


@click.command(context_settings={"default_map": {"temperature": 0.0}})
@click.argument("path", metavar="MODEL", type=PATH)
@click.argument("file", metavar="FILE", type=PATH)
@click.option(
    "--length",
    metavar="|".join((*SUMMARY_WORDS, "WORDS")),
    callback=_length,
    default="medium",
    show_default=True,
    help=f"How long the summary is: about {', '.join(map(str, SUMMARY_WORDS.values()))} words, or as you say.",
)
@click.option(
    "--style",
    type=click.Choice(get_args(SummaryStyle)),
    default="prose",
    show_default=True,
    help="Running text, or bullet points.",
)
@run_options
@sampling_options
@json_option
@verbose_option
def command(
    path: Path,
    file: Path,
    length: SummaryLength | int,
    style: SummaryStyle,
    settings: RunConfig,
    sampling: SamplingParams,
    max_tokens: int | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Let the model in the GGUF file MODEL summarize the document FILE.

    FILE is text, Markdown, HTML, PDF, DOCX, EPUB or source code (PDF needs a package: pip install -e
    ".[docs]" in the clone). What fits the window is read in one pass. Longer documents are cut at the
    borders of paragraphs into parts that fill it, and the whole is summarized from the parts' summaries.

    \b
    Examples:
      pigguf summarize model.gguf report.pdf
      pigguf summarize model.gguf novel.txt --length long --ctx 16384
      pigguf summarize model.gguf minutes.docx --style bullets --json
    """
    document = load_document(file, MAX_CHARACTERS)
    if verbose:
        log_to(render.note)
    progress = render.progress(keep=False)
    with (
        terminal.left_as_found(),
        open_session(path, settings, progress) as session,
    ):
        summarizer = Summarizer(session, length=length, style=style, sampling=sampling, max_tokens=max_tokens)
        texts = summarizer.stream(document, progress)
        if as_json:
            for _ in texts:
                pass
        else:
            with AnswerStream() as out:
                for text in texts:
                    out.write(text)
    summary = summarizer.summary
    assert summary is not None
    if as_json:
        render.json(_as_data(file, summary))
    else:
        render.note(_told(summary))


def _told(summary: Summary) -> str:
    """What the summary was made in, and whether it is all of it."""
    cut = "" if summary.stop_reason == "end" else " (cut: --length and --max-tokens allow no more)"
    if summary.passes == 1:
        return f"{summary.parts[0].location}, in one pass.{cut}"
    places = "".join(f"\n  {part.location}" for part in summary.parts)
    return f"{summary.passes:,} passes over {len(summary.parts):,} parts{cut}:{places}"


def _as_data(file: Path, summary: Summary) -> dict[str, object]:
    return {
        "file": str(file),
        "summary": summary.text,
        "finish_reason": summary.stop_reason,
        "passes": summary.passes,
        "parts": [
            {**asdict(part.location), "summary": part.summary, "finish_reason": part.stop_reason}
            for part in summary.parts
        ],
    }
