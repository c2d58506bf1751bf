"""`pigguf imatrix`: compute an importance matrix from a GGUF and calibration texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pigguf.cli import render
from pigguf.cli.formatting import format_duration
from pigguf.cli.options import FILE_PATH, engine_options, json_option, verbose_option
from pigguf.cli.progress_bars import progress_bar
from pigguf.cli.signals import cleanup_on_termination
from pigguf.inference.engine import GpuLayers, log_to
from pigguf.operations.imatrix import WINDOW, ImatrixResult, imatrix


@click.command()
@click.argument("model", metavar="MODEL", type=FILE_PATH)
@click.option(
    "--text",
    type=FILE_PATH,
    multiple=True,
    required=True,
    metavar="FILE",
    help="Calibration text in UTF-8; may be repeated.",
)
@click.option(
    "-o",
    "--output",
    type=FILE_PATH,
    default=Path("imatrix.gguf"),
    show_default=True,
    metavar="OUT",
    help="Output file.",
)
@click.option(
    "--window",
    type=click.IntRange(min=1),
    default=WINDOW,
    show_default=True,
    metavar="N",
    help="Context length of the computation in tokens, up to the model's own window.",
)
@click.option(
    "--max-windows", type=click.IntRange(min=1), metavar="N", help="Compute only the first N windows."
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
    """Compute the importance matrix of the GGUF file MODEL from calibration texts.

    The file format is llama-imatrix's; `pigguf convert` and `pigguf quantize` read it with --imatrix, and the
    smallest types require it. MODEL should have a type with little loss, such as F16 or Q8_0. For a model
    with an extended window, a long --window includes activations at depth.

    \b
    Examples:
      pigguf imatrix model-F16.gguf --text calibration.txt -o imatrix.gguf
      pigguf imatrix model-F16.gguf --text novel.txt --window 32768 --max-windows 4
    """
    if verbose:
        log_to(render.note)
    with cleanup_on_termination():
        result = imatrix(
            model,
            text,
            output,
            window=window,
            max_windows=max_windows,
            gpu_layers=gpu_layers,
            threads=threads,
            progress=progress_bar(),
        )
    if as_json:
        render.json(_as_data(result))
        return
    rows: list[tuple[str, object]] = [
        ("file", result.path),
        ("tensors", f"{result.tensors:,}"),
        (
            "text",
            f"{result.windows:,} windows of {result.window:,} tokens, in {format_duration(result.seconds)}",
        ),
    ]
    rows += [("note", f"no token was routed to these experts of {unseen}") for unseen in result.unseen]
    render.key_values(rows)


def _as_data(result: ImatrixResult) -> dict[str, Any]:
    return {
        "path": str(result.path),
        "tensors": result.tensors,
        "unseen": list(result.unseen),
        "windows": result.windows,
        "window": result.window,
        "seconds": round(result.seconds, 3),
    }
