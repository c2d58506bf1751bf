"""`pigguf summarize`: a summary of a document of any length."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import get_args

import click

from pigguf.chat.summarization import SUMMARY_WORDS, Summarizer, Summary, SummaryLength, SummaryStyle
from pigguf.cli import render, terminal
from pigguf.cli.answer_output import print_answer
from pigguf.cli.options import FILE_PATH, json_option, run_options, sampling_options, verbose_option
from pigguf.cli.progress_bars import progress_bar
from pigguf.documents import MAX_CHARACTERS, load_document
from pigguf.inference.engine import SamplingParams, log_to
from pigguf.inference.open_context import open_session
from pigguf.inference.run_config import RunConfig


def _parse_length(ctx: click.Context, parameter: click.Parameter, value: str) -> SummaryLength | int:
    if value in SUMMARY_WORDS:
        return value
    if value.isascii() and value.isdecimal() and int(value):
        return int(value)
    raise click.BadParameter(
        f"{value!r} is not {', '.join(SUMMARY_WORDS)} or a number of words", ctx, parameter
    )


@click.command(context_settings={"default_map": {"temperature": 0.0}})
@click.argument("path", metavar="MODEL", type=FILE_PATH)
@click.argument("file", metavar="FILE", type=FILE_PATH)
@click.option(
    "--length",
    metavar="|".join((*SUMMARY_WORDS, "WORDS")),
    callback=_parse_length,
    default="medium",
    show_default=True,
    help=f"Length of the summary: about {', '.join(map(str, SUMMARY_WORDS.values()))} words, or a number.",
)
@click.option(
    "--style",
    type=click.Choice(get_args(SummaryStyle)),
    default="prose",
    show_default=True,
    help="Prose, or bullet points.",
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
    config: RunConfig,
    sampling: SamplingParams,
    max_tokens: int | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Summarize the document FILE with the GGUF file MODEL.

    FILE is text, Markdown, HTML, PDF, DOCX, EPUB or source code (PDF needs a package: pip install -e
    ".[docs]" in the clone). A document that fits in the context window is summarized in one pass. A longer
    one is split between paragraphs into parts that fit, and the summaries of the parts are summarized.

    \b
    Examples:
      pigguf summarize model.gguf report.pdf
      pigguf summarize model.gguf novel.txt --length long --ctx 16384
      pigguf summarize model.gguf minutes.docx --style bullets --json
    """
    document = load_document(file, MAX_CHARACTERS)
    if verbose:
        log_to(render.note)
    progress = progress_bar(keep=False)
    with (
        terminal.restore_on_termination(),
        open_session(path, config, progress) as session,
    ):
        summarizer = Summarizer(session, length=length, style=style, sampling=sampling, max_tokens=max_tokens)
        texts = summarizer.stream(document, progress)
        if as_json:
            for _ in texts:
                pass
        else:
            print_answer(texts)
    summary = summarizer.summary
    assert summary is not None
    if as_json:
        render.json(_as_json(file, summary))
    else:
        render.note(_status_line(summary))


def _status_line(summary: Summary) -> str:
    """Return how the summary was made, and whether it was cut off."""
    cut = "" if summary.stop_reason == "end" else " (cut off: --length and --max-tokens allow no more)"
    if summary.passes == 1:
        return f"{summary.parts[0].location}, in one pass.{cut}"
    locations = "".join(f"\n  {part.location}" for part in summary.parts)
    return f"{summary.passes:,} passes over {len(summary.parts):,} parts{cut}:{locations}"


def _as_json(file: Path, summary: Summary) -> dict[str, object]:
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
