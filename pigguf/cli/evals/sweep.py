"""`pigguf eval sweep`: find the rope scaling factor that suits a model."""

from __future__ import annotations

from pathlib import Path

import click

from pigguf.cli.evals.options import comma_separated, engine_options, output_options, text_option
from pigguf.cli.evals.report_output import ReportOutput, run_evaluation
from pigguf.cli.options import FILE_PATH
from pigguf.evals.rope_factor_sweep import FACTORS, MAX_WINDOWS, sweep
from pigguf.inference.run_config import EngineConfig


@click.command()
@click.argument("model", metavar="MODEL", type=FILE_PATH)
@text_option
@click.option(
    "--factors",
    metavar="F,...",
    callback=comma_separated(float),
    default=",".join(f"{factor:g}" for factor in FACTORS),
    show_default=True,
    help="Factors to evaluate, besides 1 and the file's own.",
)
@click.option(
    "--windows",
    metavar="N,...",
    callback=comma_separated(int),
    help="Windows in tokens; default: 2048, doubling up to twice the file's, as far as the text reaches.",
)
@click.option(
    "--max-windows",
    type=click.IntRange(min=1),
    metavar="N",
    default=MAX_WINDOWS,
    show_default=True,
    help="Compute at most N windows of each length, spread evenly over the text.",
)
@engine_options
@output_options
def command(
    model: Path,
    text: tuple[Path, ...],
    factors: tuple[float, ...],
    windows: tuple[int, ...] | None,
    max_windows: int,
    engine: EngineConfig,
    output: ReportOutput,
) -> None:
    """Find the rope scaling factor that suits the GGUF file MODEL, by its perplexity under several.

    For a checkpoint whose factor is not known, or a base model that was not fine-tuned. Each factor divides
    positions linearly and replaces what the file states. The verdict states which factor fits best, how
    certainly, up to which window, and the options for `pigguf convert`.

    \b
    Examples:
      pigguf eval sweep model.gguf --text novel.txt
      pigguf eval sweep model.gguf --text novel.txt --factors 1,2,4 --windows 2048,8192 --html sweep.html
    """
    run_evaluation(
        output,
        lambda progress: sweep(
            model,
            text,
            factors=factors,
            windows=windows,
            max_windows=max_windows,
            engine=engine,
            progress=progress,
        ),
    )
