"""`pigguf eval perplexity`: how well a model foretells a text, by window."""

from __future__ import annotations

from pathlib import Path

import click

from pigguf.cli.evals.options import (
    ReportOutput,
    comma_separated,
    compare_option,
    engine_options,
    max_windows_option,
    output_options,
    run_evaluation,
    text_option,
)
from pigguf.cli.options import PATH
from pigguf.evals.perplexity import DEFAULT_STRIDE, WINDOW_METHODS, WindowMethod, perplexity
from pigguf.inference.run_config import EngineConfig

EPILOG = """\b
Methods; L is the window, S the stride:
  half-window  windows end to end, their second half scored: llama-perplexity's figures
  sliding      windows S apart, the last S tokens of each scored: the paper's, which
               computes L/S tokens for each that is scored
  whole        windows end to end, all but their first token scored: transformers' loss
"""


@click.command(epilog=EPILOG)
@click.argument("model", metavar="MODEL", type=PATH)
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
    help="Which tokens are scored, see below.",
)
@click.option(
    "--stride", type=int, metavar="S", help=f"Tokens between sliding windows; default: {DEFAULT_STRIDE}, the paper's."
)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), metavar="N", help="Take the first N tokens of each text."
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
    """Measure how well the model in the GGUF file MODEL foretells a text, by the window it is given.

    Perplexity that falls as the window grows is the sign of a window that is used.

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
