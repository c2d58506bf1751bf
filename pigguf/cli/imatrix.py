"""`pigguf imatrix`: a GGUF and texts -> which columns of its matrices matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pigguf.cli import render
from pigguf.cli.formatting import duration
from pigguf.cli.options import PATH, engine_options, json_option, verbose_option
from pigguf.cli.signals import tidy_termination
from pigguf.inference.engine import GpuLayers, log_to
from pigguf.operations.imatrix import WINDOW, ImatrixResult, imatrix


@click.command()
@click.argument("model", metavar="MODEL", type=PATH)
@click.option(
    "--text", type=PATH, multiple=True, required=True, metavar="FILE", help="UTF-8 text; may repeat."
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    default=Path("imatrix.gguf"),
    show_default=True,
    metavar="OUT",
    help="The file to write.",
)
@click.option(
    "--window",
    type=click.IntRange(min=1),
    default=WINDOW,
    show_default=True,
    metavar="N",
    help="Tokens computed together, up to the model's own window.",
)
@click.option(
    "--max-windows", type=click.IntRange(min=1), metavar="N", help="Compute the first N windows only."
)
@engine_options
@json_option
@verbose_option
def command(
    model: Path,
    text: tuple[Path, ...],
    output: Path,
    window: int,
    max_windows: int | None,
    gpu_layers: GpuLayers,
    threads: int | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Measure on texts which columns of the weight matrices of the GGUF file MODEL matter.

    The file is llama-imatrix's; `pigguf convert` and `pigguf quantize` take it as --imatrix, and the
    types of the fewest bits need it. MODEL should be of a type that loses little, such as F16 or Q8_0.
    Where a window was extended, a long --window measures what columns meet at depth, too.

    \b
    Examples:
      pigguf imatrix model-F16.gguf --text calibration.txt -o imatrix.gguf
      pigguf imatrix model-F16.gguf --text novel.txt --window 32768 --max-windows 4
    """
    if verbose:
        log_to(render.note)
    with tidy_termination():
        result = imatrix(
            model,
            text,
            output,
            window=window,
            max_windows=max_windows,
            gpu_layers=gpu_layers,
            threads=threads,
            progress=render.progress(),
        )
    if as_json:
        render.json(_as_data(result))
        return
    rows: list[tuple[str, object]] = [
        ("file", result.path),
        ("tensors", f"{result.tensors:,}"),
        ("text", f"{result.windows:,} windows of {result.window:,} tokens, in {duration(result.seconds)}"),
    ]
    rows += [("note", f"no token was sent to these experts of {unseen}") for unseen in result.unseen]
    render.facts(rows)


def _as_data(result: ImatrixResult) -> dict[str, Any]:
    return {
        "path": str(result.path),
        "tensors": result.tensors,
        "unseen": list(result.unseen),
        "windows": result.windows,
        "window": result.window,
        "seconds": round(result.seconds, 3),
    }
