"""`pigguf quantize`: a GGUF file with float weights to another type."""

from __future__ import annotations

from pathlib import Path

import click

from pigguf.cli import render
from pigguf.cli.options import (
    FILE_PATH,
    json_option,
    quantization_options,
    shard_size_option,
    type_option,
    type_table,
)
from pigguf.cli.progress_bars import progress_bar
from pigguf.cli.signals import cleanup_on_termination
from pigguf.common.format_bytes import format_bytes
from pigguf.operations.quantize import quantize


@click.command(epilog=type_table())
@click.argument("source", metavar="IN.gguf", type=FILE_PATH)
@click.argument("output", metavar="OUT.gguf", type=FILE_PATH)
@type_option()
@quantization_options
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
    """Quantize the GGUF file IN.gguf, which has float weights, to OUT.gguf.

    The weights are byte for byte those of llama.cpp's own quantizer. All other keys are copied.

    \b
    Examples:
      pigguf quantize model-F16.gguf model-Q4_K_M.gguf --type Q4_K_M
      pigguf quantize model-F16.gguf model-IQ3_S.gguf --type IQ3_S --imatrix imatrix.gguf
      pigguf quantize model-F16.gguf out.gguf --type Q4_K_M --tensor-type ffn_down=q6_k
    """
    with cleanup_on_termination():
        result = quantize(
            source,
            output,
            type=type,
            imatrix=imatrix,
            tensor_types=tensor_types,
            shard_size=shard_size,
            progress=progress_bar(),
        )
    if as_json:
        render.json(
            {
                "path": str(result.path),
                "parts": [str(part) for part in result.shards],
                "type": result.type,
                "bytes": result.bytes,
                "source_bytes": result.source_bytes,
                "seconds": round(result.seconds, 3),
            }
        )
        return
    shards = (
        [("parts", f"{len(result.shards)} files, to {result.shards[-1]}")] if len(result.shards) > 1 else []
    )
    render.key_values(
        [
            ("file", result.path),
            *shards,
            ("size", f"{format_bytes(result.bytes)}, from {format_bytes(result.source_bytes)}"),
            ("verified", f"shapes, types and rope keys, in {result.seconds:.1f} s"),
        ]
    )
