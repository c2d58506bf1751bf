"""`pigguf export`: convert a GGUF file to a Hugging Face checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from pigguf.cli import render
from pigguf.cli.options import FILE_PATH, json_option
from pigguf.cli.progress_bars import progress_bar
from pigguf.cli.signals import cleanup_on_termination
from pigguf.common.format_bytes import format_bytes
from pigguf.operations.export import export


@click.command()
@click.argument("source", metavar="MODEL.gguf", type=FILE_PATH)
@click.argument("output", metavar="DIR", type=FILE_PATH)
@json_option
def command(source: Path, output: Path, as_json: bool) -> None:
    """Convert the GGUF file MODEL.gguf to a Hugging Face checkpoint in the new directory DIR.

    Weights are dequantized and written as bfloat16, with the tokenizer and the chat template. transformers
    can load the result, and `pigguf convert` can convert it back.

    \b
    Example:
      pigguf export model.gguf ./checkpoint
    """
    with cleanup_on_termination():
        result = export(source, output, progress=progress_bar())
    rope = result.hparams.rope
    if as_json:
        render.json(
            {
                "path": str(result.path),
                "bytes": result.bytes,
                "architecture": result.hparams.architecture,
                "rope": rope.as_data(),
                "seconds": round(result.seconds, 3),
            }
        )
        return
    render.key_values(
        [
            ("directory", result.path),
            ("weights", f"{format_bytes(result.bytes)} of bfloat16, in {result.seconds:.1f} s"),
            ("context", f"{rope.context_length:,} tokens, {rope.explain()}"),
        ]
    )
