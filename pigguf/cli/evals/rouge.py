"""`pigguf eval rouge`: ROUGE scores of summaries against reference summaries."""

from __future__ import annotations

from pathlib import Path

import click

from pigguf.cli.evals.options import compare_option, engine_options, output_options, seed_option
from pigguf.cli.evals.report_output import ReportOutput, run_evaluation
from pigguf.cli.options import FILE_PATH
from pigguf.evals.rouge import MAX_INPUT, MAX_OUTPUT, rouge
from pigguf.inference.run_config import EngineConfig


@click.command()
@click.argument("model", metavar="MODEL", type=FILE_PATH)
@click.argument("data", metavar="DATA...", type=FILE_PATH, nargs=-1, required=True)
@click.option(
    "--max-input",
    type=click.IntRange(min=1),
    metavar="N",
    default=MAX_INPUT,
    show_default=True,
    help="Most tokens of a document; fewer if the window is smaller.",
)
@click.option(
    "--max-output",
    type=click.IntRange(min=1),
    metavar="N",
    default=MAX_OUTPUT,
    show_default=True,
    help="Most tokens of a summary.",
)
@click.option("--chat", is_flag=True, help="Use the model's chat template.")
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
    """Summarize documents and compare the summaries with reference summaries, by ROUGE.

    DATA are files of JSON lines: {"document": ..., "summary": ...}, or GovReport's "report" for
    "document". The prompt and the sampling (temperature 0.5, top-p 0.95) are those of the Position
    Interpolation paper. The package rouge-score is required: pip install -e ".[evals]" in the clone.

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
