"""`pigguf diff`: compare two GGUF files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from pigguf.cli import exit_codes, render
from pigguf.cli.formatting import truncate_line
from pigguf.cli.metadata_values import as_data, brief, kind, plain
from pigguf.cli.options import FILE_PATH, json_option
from pigguf.cli.progress_bars import progress_bar
from pigguf.gguf_io import GGUFTensor
from pigguf.gguf_io.metadata import TypedValue
from pigguf.operations.diff import DiffResult, KeyDifference, TensorDifference, diff

_VALUE_WIDTH = 60  # characters of a value in a table


@click.command()
@click.argument("a", metavar="A.gguf", type=FILE_PATH)
@click.argument("b", metavar="B.gguf", type=FILE_PATH)
@click.option(
    "--no-data",
    is_flag=True,
    help="Compare only the headers: metadata keys, and shapes and types of tensors.",
)
@json_option
@click.pass_context
def command(ctx: click.Context, a: Path, b: Path, no_data: bool, as_json: bool) -> None:
    """Compare two GGUF files: their keys, and their tensors by shape, type, bytes and values.

    Order is ignored. Where bytes or types differ, the dequantized values are compared: the largest
    difference, and the root mean square of the differences relative to that of A's values.

    \b
    Exit codes, in addition to those of every command:
        0  no differences
       15  differences

    \b
    Examples:
      pigguf diff model-F16.gguf model-Q4_K_M.gguf
      pigguf diff before.gguf after.gguf --no-data --json | jq .metadata
    """
    difference = diff(a, b, data=not no_data, progress=progress_bar(keep=False))
    if as_json:
        render.json(_as_data(difference))
    else:
        _show(difference)
    if not difference.same:
        ctx.exit(exit_codes.FOUND.code)


def _show(difference: DiffResult) -> None:
    render.key_values(
        [
            ("A", difference.a),
            ("B", difference.b),
            ("keys", _count(len(difference.metadata), difference.same_keys)),
            ("tensors", _count(len(difference.tensors), difference.same_tensors) + _not_compared(difference)),
        ]
    )
    if difference.metadata:
        click.echo()
        render.table(["key", "A", "B"], map(_key_row, difference.metadata))
    if difference.tensors:
        click.echo()
        numbers = ["bytes", "rows", "largest", "rms, relative"]
        rows = [_tensor_row(tensor) for tensor in difference.tensors]
        render.table(["tensor", "A", "B", *numbers], rows, right=numbers)


def _count(differing: int, same: int) -> str:
    return f"{differing:,} differ, {same:,} are equal" if differing else f"all {same:,} are equal"


def _not_compared(difference: DiffResult) -> str:
    return "" if difference.compared_data else ", only by shape and type"


def _key_row(found: KeyDifference) -> tuple[str, str, str]:
    return found.key, _side(found.a, found.first_difference), _side(found.b, found.first_difference)


def _side(typed: TypedValue | None, first: int | None) -> str:
    """Format a value as a table cell; for an array its length, and the first element that differs."""
    if typed is None:
        return "-"
    if first is None:
        return truncate_line(f"{brief(typed)} ({kind(typed)})", _VALUE_WIDTH)
    element = truncate_line(repr(typed.value[first]), _VALUE_WIDTH) if first < len(typed.value) else "missing"
    return f"{kind(typed)}, at {first}: {element}"


def _tensor_row(found: TensorDifference) -> tuple[str, ...]:
    numbers = (found.differing_bytes, found.differing_rows), (found.max_abs, found.rms_relative)
    counts, sizes = numbers
    return (
        found.name,
        _tensor(found.a),
        _tensor(found.b),
        *("" if count is None else f"{count:,}" for count in counts),
        *("" if amount is None else f"{amount:.3g}" for amount in sizes),
    )


def _tensor(tensor: GGUFTensor | None) -> str:
    return "-" if tensor is None else f"{tensor.type.name} {list(tensor.shape)}"


def _as_data(difference: DiffResult) -> dict[str, Any]:
    return {
        "a": str(difference.a),
        "b": str(difference.b),
        "same": difference.same,
        "compared_data": difference.compared_data,
        "same_keys": difference.same_keys,
        "same_tensors": difference.same_tensors,
        "metadata": [
            {
                "key": found.key,
                "first_difference": found.first_difference,
                "a": _value_data(found.a, found.first_difference),
                "b": _value_data(found.b, found.first_difference),
            }
            for found in difference.metadata
        ],
        "tensors": [
            {
                "name": found.name,
                "a": _tensor_data(found.a),
                "b": _tensor_data(found.b),
                "differing_bytes": found.differing_bytes,
                "differing_rows": found.differing_rows,
                "max_abs": _number(found.max_abs),
                "rms_relative": _number(found.rms_relative),
            }
            for found in difference.tensors
        ],
    }


def _value_data(typed: TypedValue | None, first: int | None) -> dict[str, Any] | None:
    """Return a value; for an array its length, and the first element that differs."""
    if typed is None:
        return None
    if not typed.is_array:
        return as_data(typed)
    data: dict[str, Any] = {"type": f"{typed.type}[]", "length": len(typed.value)}
    if first is not None and first < len(typed.value):
        data["element"] = plain(typed.value[first])
    return data


def _tensor_data(tensor: GGUFTensor | None) -> dict[str, Any] | None:
    return None if tensor is None else {"type": tensor.type.name, "shape": list(tensor.shape)}


def _number(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)
