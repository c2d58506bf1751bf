"""`pigguf eval perplexity`: perplexity on texts, by the length of the context window."""

from __future__ import annotations

from pathlib import Path

import click

from pigguf.cli.evals.options import (
    comma_separated,
    compare_option,
    engine_options,
    max_windows_option,
    output_options,
    text_option,
)
from pigguf.cli.evals.report_output import ReportOutput, run_evaluation
from pigguf.cli.options import FILE_PATH
from pigguf.evals.perplexity import DEFAULT_STRIDE, perplexity
from pigguf.evals.text_windows import WINDOW_METHODS, WindowMethod
from pigguf.inference.run_config import EngineConfig

EPILOG = """\b
Methods; L is the window, S the stride:
  half-window  adjacent windows, the second half of each is scored: as llama-perplexity
  sliding      windows S tokens apart, the last S tokens of each are scored: as the
               paper; it computes L/S tokens for each scored one
  whole        adjacent windows, all tokens but the first are scored: as transformers' loss
"""


@click.command(epilog=EPILOG)
@click.argument("model", metavar="MODEL", type=FILE_PATH)
@text_option
@click.option(
    "--windows",
    metavar="N,...",
    callback=comma_separated(int, "numbers of tokens"),
    help="Windows in tokens; default: 2048, doubling up to the model's.",
)
@click.option(
    "--method",
    type=click.Choice(list(WINDOW_METHODS)),
    default="half-window",
    show_default=True,
    help="Which tokens are scored; see below.",
)
@click.option(
    "--stride",
    type=int,
    metavar="S",
    help=f"Tokens between sliding windows; default: {DEFAULT_STRIDE}.",
)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), metavar="N", help="Use the first N tokens of each text."
)
@max_windows_option
@compare_option
@engine_options
@output_options
def command(
    model: Path,
    text: tuple[Path, ...],
    windows: tuple[int, ...] | None,
    method: WindowMethod,
    stride: int | None,
    max_tokens: int | None,
    max_windows: int | None,
    compare: tuple[str, ...],
    engine: EngineConfig,
    output: ReportOutput,
) -> None:
    """Measure the perplexity of the GGUF file MODEL on texts, by the length of the context window.

    Perplexity that falls as the window grows shows that the model uses its whole window.

    \b
    Examples:
      pigguf eval perplexity model.gguf --text novel.txt
      pigguf eval perplexity model.gguf --text novel.txt --windows 2048,8192 --compare none,linear:4
      pigguf eval perplexity model.gguf --text novel.txt --method sliding --max-windows 40
    """
    run_evaluation(
        output,
        lambda progress: perplexity(
            model,
            text,
            windows=windows,
            method=method,
            stride=stride,
            max_tokens=max_tokens,
            max_windows=max_windows,
            compare=compare,
            engine=engine,
            progress=progress,
        ),
    )
