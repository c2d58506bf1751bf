"""`pigguf quantize`: a float GGUF -> the same model in another type."""

from __future__ import annotations

from pathlib import Path

import click

from pigguf.cli import render
from pigguf.cli.options import PATH, json_option, shard_size_option, type_option, type_table, weights_options
from pigguf.cli.signals import tidy_termination
from pigguf.common.format_bytes import format_bytes
from pigguf.operations.quantize import quantize


@click.command(epilog=type_table())
@click.argument("source", metavar="IN.gguf", type=PATH)
@click.argument("output", metavar="OUT.gguf", type=PATH)
@type_option()
@weights_options
@shard_size_option
@json_option
def command(
    source: Path,
    output: Path,
    type: str,
    imatrix: Path | None,
    tensor_types: dict[str, str],
    shard_size: int | None,
    as_json: bool,
) -> None:
    """Write the float GGUF file IN.gguf again as OUT.gguf in another type.

    The bytes are those that llama.cpp's own quantizer makes. Every other key stays as it is.

    \b
    Examples:
      pigguf quantize model-F16.gguf model-Q4_K_M.gguf --type Q4_K_M
      pigguf quantize model-F16.gguf model-IQ3_S.gguf --type IQ3_S --imatrix imatrix.gguf
      pigguf quantize model-F16.gguf out.gguf --type Q4_K_M --tensor-type ffn_down=q6_k
    """
    with tidy_termination():
        result = quantize(
            source,
            output,
            type=type,
            imatrix=imatrix,
            tensor_types=tensor_types,
            shard_size=shard_size,
            progress=render.progress(),
        )
    if as_json:
        render.json(
            {
                "path": str(result.path),
                "parts": [str(part) for part in result.parts],
                "type": result.type,
                "bytes": result.bytes,
                "source_bytes": result.source_bytes,
                "seconds": round(result.seconds, 3),
            }
        )
        return
    more = [("parts", f"{len(result.parts)} files, to {result.parts[-1]}")] if len(result.parts) > 1 else []
    render.facts(
        [
            ("file", result.path),
            *more,
            ("size", f"{format_bytes(result.bytes)}, from {format_bytes(result.source_bytes)}"),
            ("verified", f"shapes, types and rope keys, in {result.seconds:.1f} s"),
        ]
    )
