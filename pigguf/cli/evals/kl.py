"""`pigguf eval kl`: KL divergence from a reference, by position in the window."""

from __future__ import annotations

from pathlib import Path

import click

from pigguf.cli.evals.options import engine_options, max_windows_option, output_options, text_option
from pigguf.cli.evals.report_output import ReportOutput, run_evaluation
from pigguf.cli.options import FILE_PATH
from pigguf.evals.kl_evaluation import kl
from pigguf.inference.run_config import EngineConfig


@click.command()
@click.argument("model", metavar="MODEL", type=FILE_PATH)
@click.option(
    "--reference",
    metavar="REF",
    type=FILE_PATH,
    required=True,
    help="The reference: a GGUF file, or the directory of a checkpoint.",
)
@text_option
@click.option(
    "--window",
    type=click.IntRange(min=1),
    metavar="N",
    help="Window in tokens; default: the longest that both models support.",
)
@max_windows_option
@engine_options
@output_options
def command(
    model: Path,
    reference: Path,
    text: tuple[Path, ...],
    window: int | None,
    max_windows: int | None,
    engine: EngineConfig,
    output: ReportOutput,
) -> None:
    """Measure how far the predictions of the GGUF file MODEL are from a reference's, by position.

    The reference runs with a KV cache of f16, so with the same file as reference, --cache-type shows what
    that type costs at depth. A checkpoint is converted to a temporary F32 file.

    \b
    Examples:
      pigguf eval kl model-Q4_K_M.gguf --reference ./checkpoint --text novel.txt --window 8192
      pigguf eval kl model.gguf --reference model.gguf --cache-type q8_0 --text novel.txt
    """
    run_evaluation(
        output,
        lambda progress: kl(
            model,
            text,
            reference=reference,
            window=window,
            max_windows=max_windows,
            engine=engine,
            progress=progress,
        ),
    )
