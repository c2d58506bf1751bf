"""`pigguf eval rouge`: summaries compared with people's."""

from __future__ import annotations

from pathlib import Path

import click

from pigguf.cli.evals.options import (
    ReportOutput,
    compare_option,
    engine_options,
    output_options,
    run_evaluation,
    seed_option,
)
from pigguf.cli.options import PATH
from pigguf.evals.rouge import MAX_INPUT, MAX_OUTPUT, rouge
from pigguf.inference.run_config import EngineConfig


@click.command()
@click.argument("model", metavar="MODEL", type=PATH)
@click.argument("data", metavar="DATA...", type=PATH, nargs=-1, required=True)
@click.option(
    "--max-input",
    type=click.IntRange(min=1),
    metavar="N",
    default=MAX_INPUT,
    show_default=True,
    help="Tokens of a document to read; fewer where the window ends before.",
)
@click.option(
    "--max-output",
    type=click.IntRange(min=1),
    metavar="N",
    default=MAX_OUTPUT,
    show_default=True,
    help="Most tokens of a summary.",
)
@click.option("--chat", is_flag=True, help="Ask through the model's chat template.")
@compare_option
@seed_option
@engine_options
@output_options
def command(
    model: Path,
    data: tuple[Path, ...],
    max_input: int,
    max_output: int,
    chat: bool,
    compare: tuple[str, ...],
    seed: int,
    engine: EngineConfig,
    output: ReportOutput,
) -> None:
    """Summarize documents and compare with the summaries that people wrote of them, by ROUGE.

    DATA are files of JSON lines: {"document": ..., "summary": ...}, or GovReport's "report" for
    "document". The prompt and the sampling (temperature 0.5, top-p 0.95) are those of the Position
    Interpolation paper. It needs the package rouge-score: pip install -e ".[evals]" in the clone.

    \b
    Examples:
      pigguf eval rouge model.gguf govreport.jsonl
      pigguf eval rouge model.gguf articles.jsonl --max-output 200 --json
    """
    run_evaluation(
        output,
        lambda progress: rouge(
            model,
            data,
            max_input=max_input,
            max_output=max_output,
            chat=chat,
            seed=seed,
            compare=compare,
            engine=engine,
            progress=progress,
        ),
    )
